"""The service on EC2: `python -m cluster`, see docs/ec2.md."""
