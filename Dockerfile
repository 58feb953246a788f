# Imagen Nodes in a shell, built by the Makefile's own targets:
#   docker build -t imagen-nodes .
#   docker build -t imagen-nodes:cuda --build-arg BASE=nvidia/cuda:12.8.1-cudnn-runtime-ubuntu24.04 --build-arg TORCH='torch>=2.4' .
#   docker run --rm -v "$PWD:/data" imagen-nodes generate "a red apple, noto style" -o /data/apple.png
ARG BASE=python:3.12-slim
FROM ${BASE}
ARG TORCH=torch==2.13.0
RUN apt-get update \
 && apt-get install --yes --no-install-recommends make python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
COPY . /opt/imagen-nodes
WORKDIR /opt/imagen-nodes
RUN make .venv/.headless TORCH="${TORCH}" \
 && .venv/bin/python -m pip install --no-cache-dir --editable '.[headless,comfy,scale]'
WORKDIR /data
ENTRYPOINT ["/opt/imagen-nodes/.venv/bin/imagen"]
CMD ["--help"]
