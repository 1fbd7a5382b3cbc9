"""Puts `s3cache doctor` before stores and machines in good and in bad health: its exit status, what it says, what it must not.

    python3 tests/python/doctor.py [build/s3cache]

The store: S3CACHE_TEST_ENDPOINT, and S3CACHE_TEST_TLS_ENDPOINT with S3CACHE_TEST_CA if there is one; bucket and keys as for
interop.py. Clocks, regions and quirks are those of the program fake_s3 beside s3cache. Nothing leaves the machine but for
that store. Prints one line a check and 'N passed, N failed'; exit status 1 if one failed.
"""

import atexit
import contextlib
import http.server
import os
import re
import shlex
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import uuid

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

WORKS, FAILS = 0, 2
DOCTOR_SECONDS_MAX = 120
INTERRUPTED_SECONDS_MAX = 40  # of what a signal ends; a helper for credentials would be waited for as long as 60 s
WRONG_SECRET = 'wrongSecret/0123456789+abcdefghijklmnopq'
TOKEN = 'tokenThatNobodyMaySee/0123456789'
TRIALS = ('store an entry', 'find it, miss another', 'read it back', 'store a stream in parts', 'store only if absent', 'store only if unchanged',
          'give it more time', 'list', 'remove it')


class Patient:
    """A store, and the environment of a machine that uses it: nothing of ours but what the check gives."""

    def __init__(self, program, endpoint, bucket, access_key, secret_key, authority=None):
        self.program, self.endpoint, self.bucket = os.path.abspath(program), endpoint, bucket
        self.access_key, self.secret_key, self.authority = access_key, secret_key, authority
        self.home = tempfile.mkdtemp(prefix='s3cache-doctor-')
        atexit.register(shutil.rmtree, self.home, ignore_errors=True)
        self.secrets = [secret_key, WRONG_SECRET, TOKEN]

    def environment(self, changes):
        keep = {name: value for name, value in os.environ.items() if name in ('PATH', 'LANG') or name.endswith('SAN_OPTIONS')}
        ours = {'HOME': self.home, 'AWS_EC2_METADATA_DISABLED': 'true', 'AWS_ENDPOINT_URL': self.endpoint,
                'AWS_ACCESS_KEY_ID': self.access_key, 'AWS_SECRET_ACCESS_KEY': self.secret_key, 'AWS_REGION': 'us-east-1',
                'AWS_CA_BUNDLE': self.authority, **changes}
        return {**keep, **{name: value for name, value in ours.items() if value is not None}}

    def doctor(self, wanted, *phrases, options=(), bucket=None, **changes):
        """Runs it and checks exit status, phrases (regular expressions, one line each) and that no secret is shown."""
        line = [self.program, 'doctor', '--bucket', 's3://%s/doctor' % (bucket or self.bucket), *options]
        done = subprocess.run(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              errors='replace', env=self.environment(changes), timeout=DOCTOR_SECONDS_MAX)
        wrong = ['exit status %d instead of %d' % (done.returncode, wanted)] if done.returncode != wanted else []
        wrong += ['does not say %r' % phrase for phrase in phrases if not re.search(phrase, done.stdout, re.M)]
        # A part of a secret is as bad as the whole: no run of twelve characters of it.
        wrong += ['shows a secret' for secret in self.secrets
                  if any(secret[i:i + 12] in done.stdout for i in range(len(secret) - 11))]
        assert not wrong, '%s in\n%s' % ('; '.join(wrong), done.stdout)
        return done.stdout

    def file(self, name, text):
        path = os.path.join(self.home, name)
        with open(path, 'w', encoding='utf-8', newline='', opener=lambda file, flags: os.open(file, flags, 0o600)) as out:
            out.write(text)
        return path

    def client(self):
        config = Config(s3={'addressing_style': 'path'}, retries={'max_attempts': 3}, signature_version='s3v4')
        return boto3.client('s3', endpoint_url=self.endpoint, region_name='us-east-1', config=config,
                            aws_access_key_id=self.access_key, aws_secret_access_key=self.secret_key,
                            verify=self.authority or None)

    def ensure_bucket(self):
        try:
            self.client().head_bucket(Bucket=self.bucket)
        except ClientError:
            self.client().create_bucket(Bucket=self.bucket)

    def left_behind(self):
        found = self.client().list_objects_v2(Bucket=self.bucket, Prefix='doctor/s3cache-doctor-')
        return [entry['Key'] for entry in found.get('Contents', ())]


@contextlib.contextmanager
def fake(program, *options):
    """A small S3 of its own, with a quirk or a clock that is off."""
    server = subprocess.Popen([os.path.join(os.path.dirname(os.path.abspath(program)), 'fake_s3'), '--seconds', '300', *options],
                              stdout=subprocess.PIPE, text=True)
    try:
        exported = dict(word.split('=', 1) for word in shlex.split(server.stdout.readline())[1:])
        yield Patient(program, exported['S3CACHE_TEST_ENDPOINT'], 'bucket', exported['AWS_ACCESS_KEY_ID'],
                      exported['AWS_SECRET_ACCESS_KEY'])
    finally:
        server.terminate()
        server.wait()


kept_closed = []


def closed_port():
    """Bound and not listened on as long as we run, so that nobody else gets it."""
    kept_closed.append(socket.socket())
    kept_closed[-1].bind(('127.0.0.1', 0))
    return kept_closed[-1].getsockname()[1]


def answer(trial, verdict):
    return '^  %s +%s$' % (re.escape(trial), verdict)


BROKEN = r'^  credentials: %s +BROKEN +'
NO_KEYS = {'AWS_ACCESS_KEY_ID': None, 'AWS_SECRET_ACCESS_KEY': None}

# --------------------------------------------------------------------------------------------------- checks on the store


def store_right_keys(patient):
    patient.doctor(WORKS, '^  credentials: environment +used ', '^  region +used +us-east-1 ', '^  clock +good ',
                   re.escape('(AWS_ENDPOINT_URL)'), '^The cache would work', answer('store an entry', 'yes'),
                   answer('find it, miss another', 'yes'), answer('read it back', 'yes'), answer('remove it', 'yes'))
    assert patient.left_behind() == [], patient.left_behind()


def store_profile(patient):
    text = '[work]\naws_access_key_id = %s\naws_secret_access_key = %s\n' % (patient.access_key, patient.secret_key)
    patient.doctor(WORKS, '^  credentials: environment +passed over +AWS_ACCESS_KEY_ID is not set',
                   '^  credentials: profile +used .*work', AWS_PROFILE='work',
                   AWS_SHARED_CREDENTIALS_FILE=patient.file('credentials', text), **NO_KEYS)


def store_wrong_secret(patient):
    patient.doctor(FAILS, answer('store an entry', 'NO'), '^    403 SignatureDoesNotMatch', 'fix: the secret key does not fit',
                   '^The cache would not work', AWS_SECRET_ACCESS_KEY=WRONG_SECRET)


def store_unknown_key(patient):
    patient.doctor(FAILS, '^    403 InvalidAccessKeyId', 'fix: this store does not know', AWS_ACCESS_KEY_ID='AKIDOFNOBODY')


def store_wrong_bucket(patient):
    patient.doctor(FAILS, '^    404 NoSuchBucket', 'fix: make the bucket', bucket='s3cache-' + uuid.uuid4().hex)


def store_wrong_region(patient):
    patient.doctor(WORKS, '^  region +used +eu-west-3 ', '^The cache would work', options=('--region', 'eu-west-3'))


def store_untrusted(patient):
    """Only where the store speaks TLS with an authority of its own."""
    patient.doctor(FAILS, 'certificate', 'fix: .*AWS_CA_BUNDLE', '^  clock +not known', AWS_CA_BUNDLE=None)


# ------------------------------------------------------------------------------------------------ checks on the machine


def machine_no_network(patient):
    patient.doctor(FAILS, answer('store an entry', 'NO'), 'fix: is the endpoint right', '^  clock +not known',
                   AWS_ENDPOINT_URL='http://127.0.0.1:%d' % closed_port(), AWS_SESSION_TOKEN=TOKEN)


def machine_half_an_environment(patient):
    patient.doctor(FAILS, BROKEN % 'environment' + '.*the access key is set but the secret key is not',
                   '^  credentials: profile +not asked', 'fix: .*BROKEN', AWS_SECRET_ACCESS_KEY=None)
    # The secret alone is passed over, as botocore does.
    patient.doctor(FAILS, '^  credentials: environment +passed over +AWS_ACCESS_KEY_ID is not set', AWS_ACCESS_KEY_ID=None)


def machine_half_a_web_identity(patient):
    patient.doctor(FAILS, BROKEN % 'web identity' + '.*AWS_ROLE_ARN is not',
                   AWS_WEB_IDENTITY_TOKEN_FILE=patient.file('token', TOKEN), **NO_KEYS)


def machine_malformed_config(patient):
    path = patient.file('config', '[default]\nregion = us-east-1\naws_secret_access_key %s\n' % WRONG_SECRET)
    patient.doctor(FAILS, BROKEN % 'profile' + re.escape(path) + ':3: ', '^The cache would not work', AWS_CONFIG_FILE=path,
                   **NO_KEYS)


def machine_half_a_profile(patient):
    path = patient.file('credentials', '[default]\naws_secret_access_key = %s\n' % WRONG_SECRET)
    patient.doctor(FAILS, '^  credentials: profile +passed over +.*aws_access_key_id', AWS_SHARED_CREDENTIALS_FILE=path, **NO_KEYS)


def machine_failing_process(patient):
    script = patient.file('keys', '#!/bin/sh\necho %s\nexit 3\n' % WRONG_SECRET)
    path = patient.file('config', '[default]\ncredential_process = /bin/sh %s\n' % script)
    patient.doctor(FAILS, BROKEN % 'profile' + '.*credential_process', AWS_CONFIG_FILE=path, **NO_KEYS)


def machine_process_asked_seldom(patient):
    """Which may want a token of a person each time: once for the entry, once for its rival, once to say what it answers."""
    log = patient.file('asked', '')
    script = patient.file('keys-well', '#!/bin/sh\necho x >>%s\necho \'{"Version":1,"AccessKeyId":"%s","SecretAccessKey":"%s"}\'\n'
                          % (log, patient.access_key, patient.secret_key))
    path = patient.file('config', '[default]\ncredential_process = /bin/sh %s\n' % script)
    patient.doctor(WORKS, '^  credentials: profile +used ', '^The cache would work', AWS_CONFIG_FILE=path, **NO_KEYS)
    assert os.path.getsize(log) // 2 <= 3, os.path.getsize(log) // 2


def machine_broken_container(patient):
    patient.doctor(FAILS, BROKEN % 'container', AWS_CONTAINER_CREDENTIALS_FULL_URI='http://127.0.0.1:%d/keys' % closed_port(),
                   AWS_CONTAINER_AUTHORIZATION_TOKEN=TOKEN, **NO_KEYS)


def machine_no_keys(patient):
    patient.doctor(FAILS, *('^  credentials: %s +passed over' % source for source in
                            ('environment', 'web identity', 'profile', 'container', 'instance metadata')),
                   'no credentials found', 'fix: .*AWS_ACCESS_KEY_ID', **NO_KEYS)


def machine_malformed_region(patient):
    patient.doctor(FAILS, "^  region +BROKEN +AWS_REGION is 'no region'", AWS_REGION='no region')


def machine_malformed_endpoint(patient):
    url = 'http//user:%s@host' % WRONG_SECRET
    patient.doctor(FAILS, '^  endpoint +BROKEN +AWS_ENDPOINT_URL', AWS_ENDPOINT_URL=url)


# ------------------------------------------------------------------------------------- checks on stores of another kind


def quirk_clock_behind(program):
    """To some seconds: those that a request may take are part of it."""
    with fake(program, '--clock-offset', '1200') as patient:
        patient.doctor(WORKS, '^  clock +OFF .* (119[0-9]|120[0-9]|1210) s behind', 'fix: set it', '^The cache would work',
                       *(answer(trial, 'yes') for trial in TRIALS))


def quirk_clock_ahead(program):
    with fake(program, '--clock-offset', '-1200') as patient:
        patient.doctor(WORKS, '^  clock +OFF .* (119[0-9]|120[0-9]|1210) s ahead', 'fix: set it', '^The cache would work')


def quirk_region(program):
    with fake(program, '--quirk', 'enforce-region') as patient:
        patient.doctor(WORKS, '^  region +used +eu-west-3 ', '^  requests went to +corrected +.*signed for us-east-1',
                       'fix: name that region', options=('--region', 'eu-west-3'))


def quirk_conditions(program):
    for quirk in ('ignore-conditional-put', 'refuse-conditional-put'):
        with fake(program, '--quirk', quirk) as patient:
            patient.doctor(WORKS, answer('store only if absent', 'NO'), answer('store only if unchanged', 'NO'),
                           'fix: .*if_absent', 'but for what is marked NO')
            assert patient.left_behind() == [], patient.left_behind()


def quirk_proxy_that_drops_headers(program):
    with fake(program, '--quirk', 'drop-underscore-headers') as patient:
        patient.doctor(FAILS, '^    403 SignatureDoesNotMatch', 'fix: a proxy drops headers')


def quirk_missing_is_forbidden(program):
    with fake(program, '--quirk', 'forbidden-for-missing') as patient:
        patient.doctor(FAILS, answer('find it, miss another', 'NO'), 'fix: .*s3:ListBucket', answer('remove it', 'yes'))
        assert patient.left_behind() == [], patient.left_behind()


def quirk_small_difference_of_clocks(program):
    with fake(program, '--clock-offset', '30') as patient:
        patient.doctor(WORKS, '^  clock +OFF .* (2[5-9]|3[0-5]) s behind', 'fix: set it')


def quirk_scheme_mixed_up(program):
    """Either scheme spoken to a port that speaks the other: both ends are named."""
    with fake(program) as patient:
        wrong = patient.endpoint.replace('http:', 'https:')
        patient.doctor(FAILS, answer('store an entry', 'NO'), 'fix: that port speaks HTTP: write ' + re.escape(patient.endpoint),
                       AWS_ENDPOINT_URL=wrong)
    with fake(program, '--tls') as patient:
        wrong = patient.endpoint.replace('https:', 'http:')
        patient.doctor(FAILS, answer('store an entry', 'NO'), 'fix: that port speaks HTTPS: write ' + re.escape(patient.endpoint),
                       AWS_ENDPOINT_URL=wrong)


def quirk_endpoint_with_a_path(program):
    with fake(program) as patient:
        patient.doctor(FAILS, 'fix: take the path /console off the endpoint', AWS_ENDPOINT_URL=patient.endpoint + '/console')


def quirk_no_such_bucket_behind_a_proxy(program):
    """Writes fail by their signature, but the keys are right: what is missing is the bucket."""
    with fake(program, '--quirk', 'drop-underscore-headers') as patient:
        patient.doctor(FAILS, '^    403 SignatureDoesNotMatch', 'fix: make the bucket', bucket='no-such-bucket')


def quirk_no_uploads_in_parts(program):
    with fake(program, '--quirk', 'part-min=%d' % (6 << 20)) as patient:
        patient.doctor(WORKS, answer('store a stream in parts', 'NO'), 'but for what is marked NO')
        assert patient.left_behind() == [], patient.left_behind()


class Gate(http.server.BaseHTTPRequestHandler):
    """A store in front of which stands what the test says."""
    protocol_version = 'HTTP/1.1'

    def answer(self):
        self.rfile.read(int(self.headers.get('Content-Length') or 0))
        status, body = self.server.policy(self.command, self.path)
        self.send_response(status)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_DELETE = do_POST = answer

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def gate(program, policy):
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Gate) as server:
        server.policy = policy
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Patient(program, 'http://127.0.0.1:%d' % server.server_port, 'bucket', 'AKIDFAKES3EXAMPLE', 'fake/secret')
        server.shutdown()


class Passage(socketserver.BaseRequestHandler):
    """Hands on what comes, either way, and shows it to the test first, which may hold it up."""

    def handle(self):
        with socket.create_connection(self.server.behind) as store, contextlib.suppress(OSError):
            threading.Thread(target=self.answer, args=(store,), daemon=True).start()
            while piece := self.request.recv(1 << 16):
                self.server.show(piece)
                store.sendall(piece)

    def answer(self, store):
        with contextlib.suppress(OSError):
            while piece := store.recv(1 << 16):
                self.server.show_answer(piece)
                self.request.sendall(piece)
            self.request.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def passage(patient, show, show_answer=lambda piece: None):
    """The address of a passage to the patient's store."""
    class Server(socketserver.ThreadingTCPServer):
        daemon_threads, block_on_close = True, False

        def handle_error(self, *_):
            pass

    url = urllib.parse.urlsplit(patient.endpoint)
    with Server(('127.0.0.1', 0), Passage) as server:
        server.behind, server.show, server.show_answer = (url.hostname, url.port), show, show_answer
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield 'http://127.0.0.1:%d' % server.server_address[1]
        server.shutdown()


@contextlib.contextmanager
def started(patient, *words, **changes):
    """A process of the program, which is gone in the end."""
    process = subprocess.Popen([patient.program, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True, env=patient.environment(changes))
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def there(path):
    """Once a helper has made that file."""
    deadline = time.monotonic() + DOCTOR_SECONDS_MAX
    while not os.path.exists(path):
        assert time.monotonic() < deadline, 'the helper was not started'
        time.sleep(0.02)


def hanging_helper(patient):
    """A profile whose helper for credentials says, by a file, that it was started, and nothing more."""
    mark = os.path.join(patient.home, uuid.uuid4().hex)
    script = patient.file('hangs', '#!/bin/sh\n: >"$1"\nexec sleep 600\n')
    path = patient.file('config-that-hangs', '[default]\ncredential_process = /bin/sh %s %s\n' % (script, mark))
    return mark, {'AWS_CONFIG_FILE': path, **NO_KEYS}


def interrupt_between_trials(program):
    """It tells of the signal, and not that the cache would work; what it stored is gone."""
    for method in (b'HEAD /', b'POST /'):  # the end of the first trial, and the middle of another
        with fake(program) as patient:
            running = []

            def show(piece):
                if running and piece.startswith(method):
                    running.pop().send_signal(signal.SIGTERM)

            ready = threading.Event()
            with passage(patient, lambda piece: (ready.wait(), show(piece))) as endpoint, \
                    started(patient, 'doctor', '--bucket', 's3://bucket/doctor', AWS_ENDPOINT_URL=endpoint) as process:
                running.append(process)
                ready.set()
                out = process.communicate(timeout=DOCTOR_SECONDS_MAX)[0]
            assert process.returncode == -signal.SIGTERM and 'would' not in out, (process.returncode, out)
            assert not running and patient.left_behind() == [], patient.left_behind()


def interrupt_before_a_store_that_hangs(program):
    with socket.create_server(('127.0.0.1', 0)) as silent:
        patient = Patient(program, 'http://127.0.0.1:%d' % silent.getsockname()[1], 'bucket', 'AKIDFAKES3EXAMPLE', 'fake/secret')
        with started(patient, 'doctor', '--bucket', 's3://bucket/doctor') as process:
            connection = silent.accept()[0]
            assert connection.recv(1 << 16), 'no request'
            process.send_signal(signal.SIGTERM)
            assert process.wait(INTERRUPTED_SECONDS_MAX) == -signal.SIGTERM, process.returncode
            connection.close()


def interrupt_while_credentials_are_fetched(program):
    """By doctor's first trial, by set and by get: none waits for the helper."""
    with fake(program) as patient:
        for words in (('doctor',), ('set', 'k', program), ('get', '-o', os.path.join(patient.home, 'never'), 'k')):
            mark, changes = hanging_helper(patient)
            with started(patient, words[0], '--bucket', 's3://bucket/doctor', *words[1:], **changes) as process:
                there(mark)
                process.send_signal(signal.SIGTERM)
                assert process.wait(INTERRUPTED_SECONDS_MAX) == -signal.SIGTERM, (words, process.returncode)
        assert not os.path.exists(os.path.join(patient.home, 'never'))


def interrupt_a_transfer(program):
    """Parts that were sent are taken back, and half a file is not left."""
    with fake(program) as patient:
        body = patient.file('body', 'x' * (40 << 20))
        folder = tempfile.mkdtemp(dir=patient.home)
        patient.client().upload_file(body, 'bucket', 'doctor/there')
        for words in ('set', 'k', body), ('get', '-o', os.path.join(folder, 'file'), 'there'):
            running, ready = [], threading.Event()

            def show(piece):
                ready.wait()
                if running and b'partNumber=' in piece:
                    running.pop().send_signal(signal.SIGTERM)

            def show_answer(_):
                if running and os.listdir(folder):
                    running.pop().send_signal(signal.SIGTERM)

            with passage(patient, show, show_answer) as endpoint, \
                    started(patient, words[0], '--bucket', 's3://bucket/doctor', *words[1:], AWS_ENDPOINT_URL=endpoint) as process:
                running.append(process)
                ready.set()
                assert process.wait(DOCTOR_SECONDS_MAX) == -signal.SIGTERM, (words, process.returncode)
        assert os.listdir(folder) == [], os.listdir(folder)
        assert not patient.client().list_multipart_uploads(Bucket='bucket').get('Uploads')
        assert patient.client().list_objects_v2(Bucket='bucket')['KeyCount'] == 1


def interrupt_by_a_reader_that_leaves(program):
    """As head does: the entry that was stored meanwhile is removed."""
    with fake(program) as patient:
        has_left = threading.Event()
        with passage(patient, lambda piece: has_left.wait()) as endpoint, \
                started(patient, 'doctor', '--bucket', 's3://bucket/doctor', AWS_ENDPOINT_URL=endpoint) as process:
            assert process.stdout.readline().startswith('What the store does')
            process.stdout.close()
            has_left.set()
            assert process.wait(DOCTOR_SECONDS_MAX) == FAILS, process.returncode
        assert patient.left_behind() == [], patient.left_behind()


def quirk_read_only_user(program):
    xml = b'<?xml version="1.0" encoding="UTF-8"?>\n'

    def policy(method, path):
        if method not in ('GET', 'HEAD'):
            return 403, xml + b'<Error><Code>AccessDenied</Code><Message>not yours</Message></Error>'
        if 'list-type=2' in path:
            return 200, xml + (b'<ListBucketResult><Name>bucket</Name><Prefix></Prefix><KeyCount>0</KeyCount><MaxKeys>1000</MaxKeys>'
                               b'<IsTruncated>false</IsTruncated></ListBucketResult>')
        if path.split('?')[0].strip('/') == 'bucket':
            return 200, b''
        return 404, xml + b'<Error><Code>NoSuchKey</Code><Message>nothing</Message></Error>'

    with gate(program, policy) as patient:
        patient.doctor(FAILS, '^    403 AccessDenied', 'fix: reading works: set read_only', '^Reading would work')


def checks(program):
    bucket = os.environ.get('S3CACHE_TEST_BUCKET') or 's3cache-test'
    keys = os.environ['AWS_ACCESS_KEY_ID'], os.environ['AWS_SECRET_ACCESS_KEY']
    authority = os.environ.get('S3CACHE_TEST_CA')
    patient = None
    for variable in ('S3CACHE_TEST_ENDPOINT', 'S3CACHE_TEST_TLS_ENDPOINT'):
        endpoint = os.environ.get(variable)
        if not endpoint:
            continue
        patient = Patient(program, endpoint, bucket, *keys, authority if endpoint.startswith('https') else None)
        patient.ensure_bucket()
        for name, check in list(globals().items()):
            if name.startswith('store_') and (name != 'store_untrusted' or patient.authority):
                yield '%s: %s' % (endpoint.split(':')[0], name[6:].replace('_', ' ')), lambda: check(patient)
    for name, check in list(globals().items()):
        if name.startswith('machine_'):
            yield 'machine: ' + name[8:].replace('_', ' '), lambda: check(patient)
        elif name.startswith(('quirk_', 'interrupt_')):
            yield 'fake: ' + name.replace('quirk_', '').replace('_', ' '), lambda: check(program)


def main():
    program = sys.argv[1] if len(sys.argv) > 1 else 'build/s3cache'
    passed = failed = 0
    for name, check in checks(program):
        try:
            check()
        except Exception as error:  # whatever a check ends with, the others still run
            failed += 1
            print('FAIL  %s: %s: %s' % (name, type(error).__name__, error), flush=True)
        else:
            passed += 1
            print('ok    ' + name, flush=True)
    print('%d passed, %d failed' % (passed, failed))
    return 1 if failed or not passed else 0


if __name__ == '__main__':
    sys.exit(main())
