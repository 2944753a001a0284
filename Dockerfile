# syntax=docker/dockerfile:1
# Two stages: a builder with a compiler makes the wheel (with the compiled scanner, or not at
# all), and the image gets the virtual environment, with every extra, and the one C library that
# the gate loads.
# tests/test_packaging.py runs these steps without Docker and checks this file against them.

FROM python:3.11-slim-bookworm AS builder
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY gatekeeper ./gatekeeper
ENV GATEKEEPER_REQUIRE_NATIVE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN pip wheel --no-deps --wheel-dir /wheels .
RUN python -m venv /opt/gatekeeper \
    && /opt/gatekeeper/bin/pip install "$(echo /wheels/*.whl)[all]" \
    && /opt/gatekeeper/bin/pip uninstall --yes pip setuptools

FROM python:3.11-slim-bookworm
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libpcre2-8-0 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --system --gid 10001 gatekeeper \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/gatekeeper --shell /usr/sbin/nologin gatekeeper \
    && install --directory --owner=gatekeeper --group=gatekeeper --mode=0750 /var/lib/gatekeeper
COPY --from=builder /opt/gatekeeper /opt/gatekeeper
COPY config/gatekeeper.conf /etc/gatekeeper/gatekeeper.conf
COPY config/image.d /etc/gatekeeper/conf.d
ENV PATH=/opt/gatekeeper/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RABBITMQ_CONFIG_FILES=/etc/gatekeeper/conf.d \
    GATEKEEPER_UPSTREAM=rabbitmq:5672
USER 10001:10001
WORKDIR /var/lib/gatekeeper
VOLUME /var/lib/gatekeeper
EXPOSE 5672
STOPSIGNAL SIGTERM
# A gate that serves answers the AMQP header with a method frame (first octet 1).
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 CMD ["python", "-c", "import socket; s = socket.create_connection(('127.0.0.1', 5672), 4); s.sendall(b'AMQP\\x00\\x00\\x09\\x01'); raise SystemExit(s.recv(1) != b'\\x01')"]
ENTRYPOINT ["gatekeeper"]
CMD ["--config", "/etc/gatekeeper/gatekeeper.conf"]
