# relay on Alpine: dependencies from requirements/prod.txt by their hashes, wheels only, so nothing is compiled.
#
#   docker build --build-arg REVISION="$(git rev-parse HEAD)" --tag relay .
#
# PYTHON may include a digest (3.14-alpine@sha256:...). Then the base image is also the same for each build.
ARG PYTHON=3.14-alpine

FROM python:${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/relay
COPY requirements/prod.txt /build/requirements/prod.txt
RUN pip --python /opt/relay/bin/python install --require-hashes --only-binary=:all: --no-deps --no-compile \
        -r /build/requirements/prod.txt
# The layout of the wheel (pyproject.toml): the package, with sql/ inside. This needs no build backend.
COPY relay /build/relay
COPY sql /build/relay/_sql
COPY LICENSE /build/relay/LICENSE
# Bytecode does not depend on file times, so that two builds are identical, and nothing is compiled at startup.
RUN set -eu; \
    site="$(/opt/relay/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"; \
    mv /build/relay "$site/relay"; \
    find /opt/relay/bin -type f -perm -u+x -delete; \
    printf '%s\n' '#!/opt/relay/bin/python' 'from relay.__main__ import main' '' 'main()' > /opt/relay/bin/relay; \
    chmod 755 /opt/relay/bin/relay; \
    /opt/relay/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash "$site"; \
    PYTHONDONTWRITEBYTECODE=1 /opt/relay/bin/relay --version


FROM python:${PYTHON}
# Python's image has no bytecode for the standard library. On a read-only file system it could not be stored later, so
# each start would compile it again. Installers, examples and Tk are not needed here.
RUN set -eu; \
    library="$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"; \
    rm -rf "$library"/site-packages/* "$library/ensurepip" "$library/idlelib" "$library/turtledemo" \
        "$library/tkinter" /usr/local/bin/pip* /usr/local/bin/idle* /usr/local/bin/pydoc*; \
    python -m compileall -q -j 0 --invalidation-mode unchecked-hash "$library"; \
    addgroup -S -g 10001 relay; \
    adduser -S -D -H -h /nonexistent -s /sbin/nologin -u 10001 -G relay relay
COPY --from=build /opt/relay /opt/relay
ENV PATH=/opt/relay/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=
LABEL org.opencontainers.image.title="relay" \
      org.opencontainers.image.description="Takes events in over HTTP, keeps them in PostgreSQL and delivers them as signed webhooks" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
# A number, so that Kubernetes can see that it is not root. No files are written, so the root may be read-only.
USER 10001:10001
WORKDIR /
# PORT of `relay serve`, RELAY_OPS_PORT of `relay deliver`.
EXPOSE 8080 9464
# relay is PID 1: it handles SIGTERM and reaps its own children, which are the only ones.
STOPSIGNAL SIGTERM
# For either command. It checks the process and not PostgreSQL, because a restart would not repair PostgreSQL.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
    CMD ["sh", "-c", "wget -q -O /dev/null http://127.0.0.1:${PORT:-8080}/health/live \
        || wget -q -O /dev/null http://127.0.0.1:${RELAY_OPS_PORT:-9464}/health/live || exit 1"]
ENTRYPOINT ["relay"]
CMD ["serve"]
