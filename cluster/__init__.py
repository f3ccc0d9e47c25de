"""Run the service on EC2 (`python -m cluster`, docs/ec2.md) and on Kubernetes (docs/kubernetes.md), and monitor it.

In come the settings of one installation and a Serve config; out come nodes that serve it behind a load balancer.

- `settings.py`: the settings file. `costs.py`: the price of what it describes.
- `aws.py`: the CloudFormation stack of `ec2-stack.yaml`, the ssh key, the load balancer's targets.
- `launcher.py`: Ray's cluster launcher with the config of `ec2.yaml`, and ssh tunnels to the head.
- `__main__.py`: the commands, in the order in which an update needs them.
- `kubernetes/`: manifests for KubeRay. `monitoring/`: Prometheus, alert rules, a Grafana dashboard.
"""
