"""The servers on `box`: PostgreSQL, an S3 store, git, Prefect and MLflow, a proxy with TLS and a login."""

import base64
import shlex
from pathlib import Path

from tools.several_machines.machine import ADDRESSES, Machine, Program, show, tell, wait_for
from tools.several_machines.software import POSTGRESQL, SERVICE, STORE

STORE_SETTINGS = {
    "AWS_ACCESS_KEY_ID": "flora",
    "AWS_SECRET_ACCESS_KEY": "SECRET",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ENDPOINT_URL": "http://box:9000",
    "MLFLOW_S3_ENDPOINT_URL": "http://box:9000",
}
SERVICE_SETTINGS = {
    "PREFECT_SERVER_DATABASE_CONNECTION_URL": "postgresql+asyncpg://prefect:SECRET@box/prefect",
    "MLFLOW_BACKEND_STORE_URI": "postgresql+psycopg2://mlflow:SECRET@box/mlflow",
    "MLFLOW_DEFAULT_ARTIFACT_ROOT": "mlflow-artifacts:/",
    "MLFLOW_ARTIFACTS_DESTINATION": "s3://flowers/mlflow",
}
OPEN = {
    "MLFLOW_SERVER_ALLOWED_HOSTS": "box:5000,localhost:5000,127.0.0.1:5000",
    "PREFECT_UI_API_URL": "http://box:4200/api",
    "DDPM_MLFLOW_PAGES": "http://box:5000",
}
BEHIND_PROXY = {
    "MLFLOW_SERVER_ALLOWED_HOSTS": "box:5443,localhost:5000,127.0.0.1:5000",
    "PREFECT_UI_API_URL": "https://box:4443/api",
    "DDPM_MLFLOW_PAGES": "https://box:5443",
}
CADDYFILE = """\
{
	admin off
	auto_https disable_redirects
	skip_install_trust
}
(login) {
	tls /srv/proxy/box.pem /srv/proxy/box.key
	log {
		output file /srv/proxy/access.log
	}
	basicauth {
		flora HASH
	}
}
https://box:4443 {
	import login
	reverse_proxy 127.0.0.1:4200
}
https://box:5443 {
	import login
	reverse_proxy 127.0.0.1:5000
}
"""


def log_in(user: str, password: str) -> dict[str, str]:
    """Return what a client needs to pass the proxy as this user."""
    basic = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {
        "PREFECT_API_URL": "https://box:4443/api",
        "PREFECT_CLIENT_CUSTOM_HEADERS": f'{{"Authorization": "Basic {basic}"}}',
        "MLFLOW_TRACKING_URI": "https://box:5443",
        "MLFLOW_TRACKING_USERNAME": user,
        "MLFLOW_TRACKING_PASSWORD": password,
        "SSL_CERT_FILE": "/srv/box.pem",
        "REQUESTS_CA_BUNDLE": "/srv/box.pem",
    }


def start_database(box: Machine) -> None:
    """Start PostgreSQL, with a database and a user for each server."""
    network = ADDRESSES["box"].rpartition(".")[0] + ".0/24"
    ask = "runuser -u postgres -- psql --quiet --host /srv/db"
    box.environment["PATH"] += f":{POSTGRESQL[0]}"
    box.run("mkdir /srv/db && chown postgres /srv/db", quiet=True)
    box.run("cd /srv/db && runuser -u postgres -- initdb --auth-host scram-sha-256 /srv/db/data", quiet=True)
    with (box.disk / "db/data/pg_hba.conf").open("a") as rules:
        rules.write(f"host all all {network} scram-sha-256\n")
    options = shlex.quote("-c listen_addresses=box -c unix_socket_directories=/srv/db")
    box.run(f"cd /srv/db && runuser -u postgres -- pg_ctl start -w -D data -l log -o {options}")
    for name in ("prefect", "mlflow"):
        role = shlex.quote(f"CREATE ROLE {name} LOGIN PASSWORD 'SECRET'")
        box.run(f"cd /srv/db && {ask} -c {role} -c 'CREATE DATABASE {name} OWNER {name}'")


def start_store(box: Machine) -> None:
    """Start moto's server, which speaks S3, with a bucket."""
    box.environment |= STORE_SETTINGS
    box.start("s3", f"{STORE}/bin/moto_server --host box --port 9000").wait_until_says("Running on", 60)
    box.run('python -c \'import boto3; boto3.client("s3").create_bucket(Bucket="flowers")\'', quiet=True)


def list_store(box: Machine, prefix: str) -> list[str]:
    """Return the names in the bucket that begin with `prefix`."""
    script = (
        "import boto3; pages = boto3.client('s3').get_paginator('list_objects_v2').paginate(Bucket='flowers', Prefix="
        f"'{prefix}'); print(*[each['Key'] for page in pages for each in page.get('Contents', [])], sep='\\n')"
    )
    return box.run(f"python -c {shlex.quote(script)}", quiet=True).split()


def serve_git(box: Machine) -> None:
    """Serve the repositories below /srv/git, to read and to write."""
    (box.disk / "git").mkdir()
    box.start(
        "git", "git daemon --verbose --reuseaddr --base-path=/srv/git --export-all --enable=receive-pack --listen=box"
    ).wait_until_says("Ready to rumble", 20)


def make_up(box: Machine, settings: dict[str, str], words: str) -> Program:
    """Run `make up`, then stop its worker, so that every run goes to the other machine."""
    for name, value in (SERVICE_SETTINGS | settings).items():
        tell(f"box$ export {name}={value}")
    command = f"make up {words}".strip()
    with box.exporting(SERVICE_SETTINGS | settings):
        program = box.start("up", f"{command} VENV={SERVICE} --old-file {SERVICE}/installed", shown=command)
    program.wait_until_says("Ctrl-C stops everything.", 240)
    wait_for(lambda: "stopped" in box.run("supervisorctl stop worker", status=None, quiet=True), "supervisorctl", 30)
    tell("box$ supervisorctl stop worker")
    tables = box.run("PGPASSWORD=SECRET psql -h box -U mlflow -At -c '\\dt' mlflow | wc -l", quiet=True)
    show(f"`{command}` is up, MLflow with {tables.strip()} tables in PostgreSQL", int(tables) > 10)
    files = [
        *box.disk.glob("flowers/*.db"),
        *box.disk.glob("home/.prefect/*.db"),
        *box.disk.glob("flowers/mlartifacts"),
    ]
    show("no SQLite file and no folder of artifacts is left on the machine", not files)
    return program


def start_proxy(box: Machine) -> Path:
    """Start caddy before both servers, with a certificate of its own; return the certificate."""
    (box.disk / "proxy").mkdir()
    box.run(
        "cd /srv/proxy && openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=box "
        "-addext subjectAltName=DNS:box -keyout box.key -out box.pem 2>&1",
        quiet=True,
    )
    digest = box.run("caddy hash-password --plaintext SECRET", quiet=True).strip()
    (box.disk / "proxy/Caddyfile").write_text(CADDYFILE.replace("HASH", digest))
    program = box.start("proxy", "caddy run --config /srv/proxy/Caddyfile --adapter caddyfile")
    program.wait_until_says("serving initial configuration", 30)
    return box.disk / "proxy/box.pem"
