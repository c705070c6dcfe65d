# docker build --build-arg REVISION="$(git describe --always --dirty --abbrev=40)" -t ffrepro .
#
# Also for podman and buildah: no `# syntax=`, no here-documents, absolute mount targets, octal --chmod.
# The digest is one that several public projects pin; it could not be pulled where this file was written.
ARG BASE_IMAGE=python:3.12-slim-bookworm@sha256:782412e85d0f0984994c290652577d4018aff08145c85b262bb63dc0c7522254

FROM ${BASE_IMAGE} AS base
# The base names the day of Debian's archive that it was made of, in a comment above the archive's address: Debian's
# package comes from that day too. A base that names none takes what its own archive has today, in the same version.
RUN find /etc/apt/sources.list.d -name debian.sources \
        -exec sed -i '/^# http.*snapshot/{N;s|^# \([^\n]*\)\nURIs:.*|URIs: \1|}' {} + \
    && apt-get -o Acquire::Check-Valid-Until=false -o Acquire::Retries=5 update \
    && apt-get -o Acquire::Retries=5 install -y --no-install-recommends tini=0.19.0-1+b3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/ldconfig/aux-cache /var/log/apt /var/log/*.log


FROM base AS packages
WORKDIR /opt/ffrepro
ENV PIP_CACHE_DIR=/var/cache/pip PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONDONTWRITEBYTECODE=1
COPY --chmod=0555 image/pip /usr/local/bin/locked-pip
COPY requirements/image.txt requirements/
# setuptools first, of the same lock: one package comes as source only, and is built with it.
# A proxy's certificates, where there is one between here and the packages: --secret id=ca-bundle,src=BUNDLE
RUN --mount=type=cache,target=/var/cache/pip --mount=type=secret,id=ca-bundle \
    python -m venv --without-pip /opt/venv \
    && sed -n '/^setuptools==/,/[^\\]$/p' requirements/image.txt > /tmp/setuptools.txt \
    && locked-pip /opt/venv -r /tmp/setuptools.txt \
    && locked-pip /opt/venv -r requirements/image.txt
# Bytecode that never looks at a file's date, so that the same source gives the same bytes; all by one process, since a
# file's bytecode also depends on what its process has compiled before (strings it already knows are marked as shared).
RUN python -m compileall -q --invalidation-mode unchecked-hash /opt/venv/lib


FROM packages AS build
COPY requirements/image-build.txt requirements/
RUN --mount=type=cache,target=/var/cache/pip --mount=type=secret,id=ca-bundle \
    python -m venv --without-pip /opt/build && locked-pip /opt/build -r requirements/image-build.txt
COPY . .
# Readable for all, whatever rights the checkout was made with.
RUN chmod -R u=rwX,go=rX . \
    && python -m compileall -q --invalidation-mode unchecked-hash ffrepro pipelines
ARG BASE_IMAGE
ARG REVISION=unknown
RUN /opt/build/bin/python image/inventory.py /opt/venv "$REVISION" "$BASE_IMAGE" \
    && rm image/inventory.py image/pip image/dvc image/ffrepro


FROM base
# Any user may be given: all that is written lies in /out, /data and /tmp. A named volume takes over their rights.
RUN useradd --uid 10001 --user-group --home-dir /tmp --no-create-home --shell /usr/sbin/nologin ffrepro \
    && rm -f /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow- \
    && mkdir -m 1777 /out /data
# The base brings Python's own library without bytecode.
RUN python -m compileall -q -x site-packages --invalidation-mode unchecked-hash /usr/local/lib/python3.*
COPY --from=packages /opt/venv /opt/venv
COPY --chmod=0444 image/dvc /etc/ffrepro/dvc/config
COPY --chmod=0555 image/ffrepro /usr/local/bin/ffrepro
COPY --from=build /opt/ffrepro /opt/ffrepro
ARG REVISION=unknown
ARG BASE_IMAGE
LABEL org.opencontainers.image.title="ffrepro" \
      org.opencontainers.image.description="Reproduce The Trifecta (arXiv 2311.18130) by one command, and prove it" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE_IMAGE}" \
      org.opencontainers.image.licenses="Apache-2.0"
# CUDA comes with the packages; the host's driver (580 or newer) is let in by --gpus all, and by nothing else.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
# PYTHONSAFEPATH: code is the image's, also where a folder with other code is the current one.
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/opt/ffrepro PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    HOME=/tmp USER=ffrepro SHELL=/bin/sh MPLCONFIGDIR=/tmp/matplotlib \
    DVC_SYSTEM_CONFIG_DIR=/etc/ffrepro/dvc DVC_SITE_CACHE_DIR=/tmp/dvc DVC_NO_ANALYTICS=1
WORKDIR /opt/ffrepro
USER 10001:10001
# tini (-s: also where it is not the first process, as under Apptainer) hands signals on to all processes, and buries those that are left.
ENTRYPOINT ["/usr/bin/tini", "-s", "-g", "--", "python", "-m", "ffrepro.container"]
CMD ["--help"]
