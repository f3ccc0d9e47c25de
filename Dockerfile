# Builds two images:
#   docker build --target serve --tag serve-app .            a Ray node: API, preprocessing, model
#   docker build --target page --tag serve-app-page .        the page, without Ray and torch
# Build arguments:
#   PYTHON_IMAGE, PYTHON_DIGEST (sha256:…)   base image, and the digest that pins it
#   WHEEL_INDEX                              PyTorch's CPU-only index; without it torch brings CUDA
#   BAKE_WEIGHTS=imagenet                    download the ImageNet weights into the image
#   GIT_SHA                                  the commit that is built
ARG PYTHON_IMAGE=python:3.11-slim
ARG PYTHON_DIGEST=

FROM ${PYTHON_IMAGE}${PYTHON_DIGEST:+@$PYTHON_DIGEST} AS base
RUN apt-get update \
 && apt-get install --yes --no-install-recommends tini wget \
 && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/*
RUN useradd --create-home --uid 1000 --shell /bin/bash ray
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /app
# tini forwards signals and reaps orphans. Python as process 1 would not reap HAProxy's processes.
ENTRYPOINT ["tini", "--"]

# Extracts the requirements from pyproject.toml: a change of anything else in that file does not repeat the installation.
FROM base AS requirements
COPY pyproject.toml .
RUN python -c "import pathlib, tomllib; \
extras = tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']; \
requirements = {'serve': extras['api'] + extras['aws'] + extras['tracing'], 'page': extras['page']}; \
[pathlib.Path(name + '.txt').write_text('\n'.join(lines)) for name, lines in requirements.items()]"

FROM base AS page
COPY --from=requirements /app/page.txt /tmp/install/
COPY constraints.txt /tmp/install/
RUN pip install --constraint /tmp/install/constraints.txt --requirement /tmp/install/page.txt \
 && rm -r /tmp/install
COPY frontend frontend
COPY LICENSE .
COPY serve_app/__init__.py serve_app/classification_metrics.py serve_app/csv_text.py serve_app/errors.py \
     serve_app/prediction_log_format.py serve_app/zip_entries.py serve_app/
COPY serve_app/heads/__init__.py serve_app/heads/names.py serve_app/heads/
COPY serve_app/preprocessing serve_app/preprocessing
ENV STREAMLIT_SERVER_ADDRESS=0.0.0.0
USER ray
EXPOSE 8501
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s \
  CMD wget --no-proxy --quiet --output-document=/dev/null \
      "http://127.0.0.1:8501${STREAMLIT_SERVER_BASE_URL_PATH:+/$STREAMLIT_SERVER_BASE_URL_PATH}/_stcore/health"
CMD ["python", "-m", "streamlit", "run", "frontend/app.py"]
ARG PYTHON_IMAGE
ARG PYTHON_DIGEST
ARG GIT_SHA=unknown
ENV GIT_SHA=$GIT_SHA
LABEL org.opencontainers.image.title="serve-app page" \
      org.opencontainers.image.description="The Streamlit page of the image-classification service" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name=$PYTHON_IMAGE \
      org.opencontainers.image.base.digest=$PYTHON_DIGEST \
      org.opencontainers.image.revision=$GIT_SHA

FROM base AS serve
# Ray's cluster launcher needs rsync and ssh; KubeRay's probes need wget.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends openssh-client rsync \
 && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/*
ARG WHEEL_INDEX=
COPY --from=requirements /app/serve.txt /tmp/install/
COPY constraints.txt /tmp/install/
RUN pip install --constraint /tmp/install/constraints.txt --requirement /tmp/install/serve.txt \
      ${WHEEL_INDEX:+--extra-index-url "$WHEEL_INDEX"} \
 && rm -r /tmp/install
# A new volume takes its owner from the folder on which it is mounted.
RUN install --directory --owner=ray --group=ray /weights /data
COPY LICENSE .
COPY configs configs
COPY serve_app serve_app
# No copy of configs/ray.env here: `serve-app run` reads the file. Whoever runs `ray start` in this image hands it over:
# compose.yaml with env_file, Kubernetes with envFrom, `python -m cluster` with --env, `docker run` with --env-file.
# The program that Ray starts as HAProxy; it completes Ray's configuration first.
RUN python -m serve_app.launcher.haproxy /usr/local/bin/serve-haproxy
ENV RAY_SERVE_HAPROXY_BINARY_PATH=/usr/local/bin/serve-haproxy
# `ray start` does not put /app on the import path of its workers; PYTHONPATH does, whichever command starts Ray.
ENV PYTHONPATH=/app TORCH_HOME=/weights SERVE_APP_DATA=/data
USER ray
# The demo model is part of the package. ImageNet weights come from the volume, or with BAKE_WEIGHTS from the image.
ARG BAKE_WEIGHTS=
RUN if [ "$BAKE_WEIGHTS" = imagenet ]; then python -m serve_app.inference.imagenet_download; fi
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=5s --start-period=180s \
  CMD ["wget", "--no-proxy", "--quiet", "--output-document=/dev/null", "http://127.0.0.1:8000/readyz"]
CMD ["python", "-m", "serve_app", "run", "--host", "0.0.0.0", "--no-page"]
ARG PYTHON_IMAGE
ARG PYTHON_DIGEST
ARG GIT_SHA=unknown
ENV GIT_SHA=$GIT_SHA
LABEL org.opencontainers.image.title="serve-app" \
      org.opencontainers.image.description="Ray node of the image-classification service: ResNet-18 on Ray Serve" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name=$PYTHON_IMAGE \
      org.opencontainers.image.base.digest=$PYTHON_DIGEST \
      org.opencontainers.image.revision=$GIT_SHA
