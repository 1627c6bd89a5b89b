# The relay as a container image: one flat file system of Debian's Python, the relay and the hardened libssh2; no shell that anybody needs,
# no package manager, not root, and nothing that is written to outside of /run/relay, /var/lib/relay and /tmp.
#
#   docker build -t git-ssh-relay .
#   docker run --init --read-only --tmpfs /run/relay:uid=65532,mode=0700 -v /etc/relay:/etc/relay:ro -p 2222:2222 --stop-timeout 75 git-ssh-relay
#
# deploy/README.md says what relay.toml needs for that. `make image-test` builds it with buildah and clones through it.

# A Debian bookworm with apt, by the digest of its index of all platforms; its security updates are installed by the build. Another registry, or a
# base made by debootstrap: --build-arg BASE=... docs/releasing.md says how to renew the digest.
ARG BASE=debian:12.11-slim@sha256:b1a741487078b369e78119849663d7f1a5341ef2768798f7b7406c4240f86aef

# -- the environment in /opt/relay: pinned packages, and libssh2 built from its patched source ---------------------------------------------
FROM ${BASE} AS build
ENV DEBIAN_FRONTEND=noninteractive PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_CACHE_DIR=1
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends binutils ca-certificates gcc libc6-dev libssl-dev patch python3-dev python3-venv \
 && python3 -m venv /opt/relay
WORKDIR /src
COPY constraints.txt LICENSE ./
COPY requirements requirements
COPY native native
# secrets, for those who have an index or a certificate authority of their own: `pip` is a pip.conf, `ca` what it may name as /run/secrets/ca
# each file that is downloaded is compared with its SHA-256 before anything of it is used
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca \
    /opt/relay/bin/pip install --quiet --no-deps --require-hashes -r requirements/run.txt && native/build.sh /opt/relay
COPY README.md pyproject.toml git_ssh_relay.py ./
COPY relay relay
COPY docs/relay.1 docs/
# What runs is kept: no ssh2-python, in whose place relay_ssh2 of git-ssh-relay-native is used, no pip, no headers, sources of extensions, type stubs, tests, debug symbols, and none of the languages that rich could
# colour. The compiled files are made here, once, and believed unchecked: on a read-only root they could never be written.
RUN /opt/relay/bin/pip install --quiet --no-deps --no-index --no-build-isolation . \
 && /opt/relay/bin/pip uninstall --quiet --yes ssh2-python setuptools pip \
 && rm -rf /opt/relay/include /opt/relay/share /opt/relay/.native /opt/relay/bin/[Aa]ctivate* /opt/relay/lib64 \
 && cd /opt/relay/lib/python3.11/site-packages \
 && find . -name __pycache__ -prune -exec rm -rf {} + \
 && find . -depth -type d \( -name tests -o -name test -o -name testing \) -exec rm -rf {} + \
 && find . -type f \( -name '*.pyx' -o -name '*.pxd' -o -name '*.pxi' -o -name '*.pyi' -o -name '*.c' -o -name '*.h' -o -name '*.hash' \) -delete \
 && rm -rf pygments/lexers \
 && find . -name '*.so*' -type f -exec strip --strip-unneeded {} + \
 && python3 -m compileall -q --invalidation-mode unchecked-hash .

# -- the root: Debian's Python and nothing that only installs, documents or translates -------------------------------------------------------
FROM ${BASE} AS root
ENV DEBIAN_FRONTEND=noninteractive
RUN apt-get update -qq \
 && apt-get upgrade -y -qq \
 && apt-get install -y -qq --no-install-recommends ca-certificates python3 \
 && cd /usr/lib/python3.11 \
 && rm -rf ensurepip idlelib lib2to3 pydoc_data test tkinter turtledemo config-3.11-* \
 && find . -name __pycache__ -prune -exec rm -rf {} + \
 && python3 -m compileall -q --invalidation-mode unchecked-hash . \
 && rm -rf /var/cache/* /var/lib/apt /var/log/* /var/lib/dpkg/info /var/lib/systemd /usr/share/doc/*/[!c]* /usr/share/man /usr/share/info \
    /usr/share/locale /usr/share/lintian /usr/share/bash-completion /usr/share/perl* /usr/lib/*/perl-base /usr/bin/perl* /usr/lib/apt /etc/apt \
    /usr/bin/apt* /usr/lib/*/libapt-* /usr/share/zoneinfo /usr/lib/*/gconv /usr/share/python3 /usr/share/debconf /usr/lib/udev /usr/lib/systemd \
    ~root/.[!.]* /tmp/* /boot /media /mnt /home/* \
 && find / -xdev -type f -perm /6000 -exec chmod ug-s {} + \
 && echo 'relay:x:65532:65532:git-ssh-relay:/nonexistent:/usr/sbin/nologin' >>/etc/passwd \
 && echo 'relay:x:65532:' >>/etc/group \
 && mkdir -p /etc/relay /run/relay /var/lib/relay /var/cache/relay \
 && chown 65532:65532 /run/relay /var/lib/relay /var/cache/relay && chmod 0700 /run/relay /var/lib/relay /var/cache/relay
COPY --from=build /opt/relay /opt/relay

# -- the image: one layer, so that what was removed is gone ------------------------------------------------------------------------------------
FROM scratch
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="git-ssh-relay" \
      org.opencontainers.image.description="A git-over-SSH relay: public-key authentication, access and routing in front of git hosts" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=root / /
ENV PATH=/opt/relay/bin:/usr/bin:/bin LANG=C.UTF-8 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
WORKDIR /
EXPOSE 2222 9122
STOPSIGNAL SIGTERM
# whether it answers; one that drains, or whose git hosts are all down, is not to be restarted for that (/ready tells)
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s --retries=3 CMD ["relay", "health", "--live", "-c", "/etc/relay/relay.toml"]
ENTRYPOINT ["relay"]
CMD ["serve", "-c", "/etc/relay/relay.toml"]
