# Two images from one file:
#   docker build --target serve --tag serve-app .            a Ray node: API, preprocessing, model
#   docker build --target page --tag serve-app-page .        the page, without Ray or torch
# Arguments: PYTHON_IMAGE and PYTHON_DIGEST (sha256:…) choose and pin the base, WHEEL_INDEX names PyTorch's
# CPU-only index (without it torch brings CUDA), BAKE_WEIGHTS=imagenet downloads those weights into the image,
# GIT_SHA is the commit built.
ARG PYTHON_IMAGE=python:3.11-slim
ARG PYTHON_DIGEST=

FROM ${PYTHON_IMAGE}${PYTHON_DIGEST:+@$PYTHON_DIGEST} AS base
RUN apt-get update \
 && apt-get install --yes --no-install-recommends tini wget \
 && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/*
RUN useradd --create-home --uid 1000 --shell /bin/bash ray
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /app
# Signals and orphans are tini's: Python as process 1 would reap none of HAProxy's.
ENTRYPOINT ["tini", "--"]

# What pyproject.toml asks for, as two files: a change of anything else in it installs nothing again.
FROM base AS requirements
COPY pyproject.toml .
RUN python -c "import pathlib, tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = project['optional-dependencies']; \
requirements = {'serve': project['dependencies'] + extras['aws'] + extras['tracing'], 'page': extras['page']}; \
[pathlib.Path(name + '.txt').write_text('\n'.join(lines)) for name, lines in requirements.items()]"

FROM base AS page
COPY --from=requirements /app/page.txt /tmp/install/
COPY constraints.txt /tmp/install/
RUN pip install --constraint /tmp/install/constraints.txt --requirement /tmp/install/page.txt \
 && rm -r /tmp/install
COPY .streamlit .streamlit
COPY frontend frontend
ENV STREAMLIT_SERVER_ADDRESS=0.0.0.0
USER ray
EXPOSE 8501
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s \
  CMD ["wget", "--no-proxy", "--quiet", "--output-document=/dev/null", "http://127.0.0.1:8501/_stcore/health"]
CMD ["python", "-m", "streamlit", "run", "frontend/app.py"]
ARG PYTHON_IMAGE
ARG PYTHON_DIGEST
ARG GIT_SHA=unknown
ENV GIT_SHA=$GIT_SHA
LABEL org.opencontainers.image.title="serve-app page" \
      org.opencontainers.image.description="The Streamlit page of the image-classification service" \
      org.opencontainers.image.base.name=$PYTHON_IMAGE \
      org.opencontainers.image.base.digest=$PYTHON_DIGEST \
      org.opencontainers.image.revision=$GIT_SHA

FROM base AS serve
# The cluster launcher copies files with rsync and reaches workers with ssh; KubeRay's probes call wget.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends openssh-client rsync \
 && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/*
ARG WHEEL_INDEX=
COPY --from=requirements /app/serve.txt /tmp/install/
COPY constraints.txt /tmp/install/
RUN pip install --constraint /tmp/install/constraints.txt --requirement /tmp/install/serve.txt \
      ${WHEEL_INDEX:+--extra-index-url "$WHEEL_INDEX"} \
 && rm -r /tmp/install
# Volumes take their owner from the folder that they cover.
RUN install --directory --owner=ray --group=ray /weights /predictions /app/.jobs
COPY configs configs
COPY serve_app serve_app
# No copy of configs/ray.env here: `serve-app run` reads the file. Whoever runs `ray start` in this image hands it over:
# compose.yaml with env_file, Kubernetes with envFrom, `python -m cluster` with --env, `docker run` with --env-file.
# The program that Ray starts as HAProxy; it completes Ray's configuration first.
RUN python -m serve_app.launcher.haproxy /usr/local/bin/serve-haproxy
ENV RAY_SERVE_HAPROXY_BINARY_PATH=/usr/local/bin/serve-haproxy
# `ray start` puts no folder of ours on the path of its workers; PYTHONPATH does, whoever starts it.
ENV PYTHONPATH=/app TORCH_HOME=/weights
USER ray
# The demo model is part of the code; ImageNet's weights come from a volume, or into the image if asked for.
ARG BAKE_WEIGHTS=
RUN if [ "$BAKE_WEIGHTS" = imagenet ]; then python -m serve_app.launcher.imagenet; fi
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=5s --start-period=180s \
  CMD ["wget", "--no-proxy", "--quiet", "--output-document=/dev/null", "http://127.0.0.1:8000/readyz"]
CMD ["python", "-m", "serve_app", "run", "--host", "0.0.0.0", "--no-page"]
ARG PYTHON_IMAGE
ARG PYTHON_DIGEST
ARG GIT_SHA=unknown
ENV GIT_SHA=$GIT_SHA
LABEL org.opencontainers.image.title="serve-app" \
      org.opencontainers.image.description="ResNet-18 image classification on Ray Serve: a Ray node" \
      org.opencontainers.image.base.name=$PYTHON_IMAGE \
      org.opencontainers.image.base.digest=$PYTHON_DIGEST \
      org.opencontainers.image.revision=$GIT_SHA
