"""The Celery application of test_clients.py; its broker URL and CA file come by environment."""

from __future__ import annotations

import os
import ssl

from celery import Celery

app = Celery("gatekeeper-test", broker=os.environ["TEST_BROKER_URL"], backend="rpc://")
app.conf.update(
    task_default_queue="a.celery",
    task_default_exchange="a.celery",
    task_default_routing_key="a.celery",
    worker_enable_remote_control=False,
    worker_send_task_events=False,
    event_queue_prefix="a.celeryev",
    result_exchange="a.results",
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=3,
    result_expires=60,
)
if os.environ.get("TEST_CA_FILE"):
    app.conf.broker_use_ssl = {
        "ca_certs": os.environ["TEST_CA_FILE"],
        "cert_reqs": ssl.CERT_REQUIRED,
    }


@app.task
def add(left: int, right: int) -> int:
    return left + right
