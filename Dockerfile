# One image for both planes; the command says which one runs. Dependencies come from the lock file, with their hashes checked.
FROM python:3.11.14-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /src
COPY requirements.lock ./
RUN python -m venv /opt/hephaestus \
 && /opt/hephaestus/bin/pip install --quiet --no-deps --require-hashes -r requirements.lock
COPY pyproject.toml README.md ./
COPY controlplane controlplane
COPY proxy proxy
COPY detectors detectors
COPY dashboards dashboards
RUN /opt/hephaestus/bin/pip install --quiet --no-deps --no-build-isolation . \
 && /opt/hephaestus/bin/pip uninstall --quiet --yes pip

FROM python:3.11.14-slim-bookworm
RUN groupadd --gid 10001 hephaestus \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin hephaestus \
 && install -d -o 10001 -g 10001 -m 0700 /data
COPY --from=build /opt/hephaestus /opt/hephaestus
ENV PATH=/opt/hephaestus/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HEPHAESTUS_CONFIG=/etc/hephaestus/hephaestus.yaml
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 4000 4001
ENTRYPOINT ["hephaestus"]
CMD ["--help"]
