"""OpenStack Swift as one program, for swift.sh: swift_servers.py DIR [PORT] makes the rings, starts the account, container and
object server and the proxy on 127.0.0.1 as children of its own, makes BUCKET, writes DIR/env once all answer, and waits for
SIGTERM. One device and one replica. It needs Debian's python3-swift, which is the library and nothing that starts by itself."""
import base64
import ctypes
import hashlib
import hmac
import http.client
import json
import logging.handlers
import os
import pwd
import random
import secrets
import signal
import socket
import sys
from email.utils import formatdate
from time import monotonic, sleep, time as now

BUCKET = "s3cache-test"
SERVERS = ("account", "container", "object", "proxy")

COMMON = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
user = {user}
swift_dir = {base}
devices = {base}/devices
mount_check = false
# In the process that was started, with no others.
workers = 0
# No /dev/log, and no datagrams to the port of syslog either: see quiet().
log_address = {base}/no-log
log_level = WARNING
fallocate_reserve = 0
"""

CONFS = {
    "account": "[pipeline:main]\npipeline = account-server\n\n[app:account-server]\nuse = egg:swift#account\n",
    # No updater runs beside: a list is of what was answered, however busy the machine.
    "container": "[pipeline:main]\npipeline = container-server\n\n[app:container-server]\nuse = egg:swift#container\n"
                 "node_timeout = 30\nconn_timeout = 5\n",
    "object": "container_update_timeout = 60\n\n[pipeline:main]\npipeline = object-server\n\n"
              "[app:object-server]\nuse = egg:swift#object\nnode_timeout = 30\nconn_timeout = 5\n",
    "proxy": """
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck cache listing_formats s3api tempauth copy slo dlo proxy-server

[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
node_timeout = 60
recoverable_node_timeout = 60
conn_timeout = 5

[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:cache]
paste.filter_factory = swift_servers:cache_filter
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
storage_domain = localhost
[filter:tempauth]
use = egg:swift#tempauth
user_tests_s3cache = {secret} .admin
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
""",
}


def quiet():
    """What Swift would tell syslog it tells standard error alone."""
    logging.handlers.SysLogHandler.emit = lambda self, record: None


class Memory:
    """What Swift asks of memcached, in the one process that asks."""

    def __init__(self):
        self.known = {}

    def get(self, key, *_, **__):
        text, until = self.known.get(key, ("null", 0))
        return json.loads(text) if until == 0 or until > now() else None

    def set(self, key, value, serialize=True, time=0, *_, **__):
        # Thirty days and more are a moment, less a span: as memcached has it.
        self.known[key] = json.dumps(value), time + (now() if 0 < time < 2592000 else 0)

    def delete(self, key, *_, **__):
        self.known.pop(key, None)

    def incr(self, key, delta=1, time=0, *_, **__):
        value = max((self.get(key) or 0) + int(delta), 0)
        self.set(key, value, time=time)
        return value

    def decr(self, key, delta=1, time=0, *_, **__):
        return self.incr(key, -int(delta), time)

    def get_multi(self, keys, *_, **__):
        return [self.get(key) for key in keys]

    def set_multi(self, mapping, server_key=None, serialize=True, time=0, *_, **__):
        for key, value in mapping.items():
            self.set(key, value, time=time)


def cache_filter(*_, **__):
    memory = Memory()

    def wrapped(app):
        def call(env, start_response):
            env["swift.cache"] = memory
            return app(env, start_response)
        return call
    return wrapped


def own_ports(count, wanted):
    """Below those that outgoing connections use, so that none is taken between this and the servers' own bind."""
    held, ports = [], []
    while len(ports) < count:
        port = int(wanted) if wanted and not ports else random.randrange(20000, 32000)
        wanted = None
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            sock.close()
            continue
        held.append(sock)
        ports.append(port)
    for sock in held:
        sock.close()
    return ports


def write(path, text):
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write(text)


def configure(base, ports, secret):
    os.makedirs(os.path.join(base, "devices", "d1"), exist_ok=True)
    write(base + "/swift.conf", "[swift-hash]\nswift_hash_path_suffix = %s\n"
                                "[storage-policy:0]\nname = one\ndefault = yes\n" % secrets.token_hex(8))
    fields = {"base": base, "user": pwd.getpwuid(os.getuid()).pw_name, "secret": secret}
    for name in SERVERS:
        write("%s/%s.conf" % (base, name), (COMMON + CONFS[name]).format(port=ports[name], **fields))


def make_rings(base, ports):
    from swift.common.ring import RingBuilder
    for name in ("account", "container", "object"):
        builder = RingBuilder(4, 1, 0)  # 16 partitions, one copy
        builder.add_dev({"region": 1, "zone": 1, "ip": "127.0.0.1", "port": ports[name], "device": "d1", "weight": 1.0})
        builder.rebalance(seed=1)
        builder.get_ring().save("%s/%s.ring.gz" % (base, name))


def serve(base, name):
    """In a child: never returns."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: none outlives the parent
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    from swift.common.wsgi import run_wsgi
    os._exit(run_wsgi("%s/%s.conf" % (base, name), name + "-server", verbose=True) or 0)


def make_bucket(port, access, secret):
    """Signed the old way; a status, or None without an answer."""
    date = formatdate(usegmt=True)
    to_sign = "PUT\n\n\n%s\n/%s" % (date, BUCKET)
    signature = base64.b64encode(hmac.new(secret.encode(), to_sign.encode(), hashlib.sha1).digest()).decode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("PUT", "/" + BUCKET, headers={
            "Date": date, "Content-Length": "0", "Authorization": "AWS %s:%s" % (access, signature)})
        return connection.getresponse().status
    except OSError:
        return None
    finally:
        connection.close()


def main(base, wanted=None):
    probe = base + "/probe"
    write(probe, "")
    try:
        os.setxattr(probe, "user.swift.probe", b"x" * 1000)
    except OSError as error:
        sys.exit("%s: its file system keeps no user attributes (%s): set S3CACHE_SWIFT_DIR to a folder of one that does"
                 % (base, error.strerror))
    os.unlink(probe)
    access, secret = "tests:s3cache", secrets.token_hex(20)
    ports = dict(zip(reversed(SERVERS), own_ports(len(SERVERS), wanted)))
    configure(base, ports, secret)
    quiet()
    from swift.common.utils import set_swift_dir
    set_swift_dir(base)
    make_rings(base, ports)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    children = {}
    try:
        for name in SERVERS:
            pid = os.fork()
            if pid == 0:
                serve(base, name)
            children[pid] = name
        status, deadline = None, monotonic() + 60
        while status != 200:
            sleep(0.1)
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if pid:
                sys.exit("the %s server ended" % children.pop(pid))
            if monotonic() > deadline:
                sys.exit("making a bucket: answer %s" % status)
            status = make_bucket(ports["proxy"], access, secret)
        write(base + "/env.new", """export S3CACHE_TEST_ENDPOINT='http://127.0.0.1:{0}'
export S3CACHE_TEST_HOST_ENDPOINT='http://localhost:{0}'
export S3CACHE_TEST_BUCKET='{1}'
export S3CACHE_TEST_REGION='us-east-1'
export AWS_ACCESS_KEY_ID='{2}'
export AWS_SECRET_ACCESS_KEY='{3}'
export AWS_REGION='us-east-1'
unset S3CACHE_TEST_TLS_ENDPOINT S3CACHE_TEST_CA AWS_SESSION_TOKEN AWS_PROFILE AWS_ENDPOINT_URL AWS_ENDPOINT_URL_S3 AWS_CA_BUNDLE
""".format(ports["proxy"], BUCKET, access, secret))
        os.rename(base + "/env.new", base + "/env")
        pid, _ = os.wait()
        sys.exit("the %s server ended" % children.pop(pid))
    finally:
        for pid in children:
            os.kill(pid, signal.SIGTERM)


if __name__ == "__main__":
    main(*sys.argv[1:])
