"""Has `s3cache run` cache commands, and the other commands say what they do: what is said, kept, and what not.

    python3 tests/python/cli_run.py [build/s3cache]

The store: S3CACHE_TEST_ENDPOINT; bucket and keys as for interop.py. Nothing leaves the machine but for that store. What
happens when is settled by what the commands say and wait for, not by time. What a check started is ended with it, also in the
background of a script, where SIGINT is ignored. Prints one line a check and 'N passed, N failed'; exit status 1 if one failed.
"""

import contextlib
import fcntl
import json
import os
import pty
import re
import resource
import signal
import socket
import stat
import struct
import subprocess
import sys
import termios
import threading
import time
import uuid
import xml.etree.ElementTree

from botocore.exceptions import ClientError
from doctor import WRONG_SECRET, Patient, closed_port, hanging_helper, there

SECONDS_MAX = 120  # of one call, so that a hang is a failure
OUTPUT_BYTES = 200 << 20
MEMORY_BYTES_MAX = 120 << 20  # parts under way take 64 MiB of it


class Shell:
    """A bucket to run commands against, below a prefix of its own, and a folder for what they leave."""

    def __init__(self, patient):
        self.patient, self.prefix, self.count, self.started = patient, 'run-' + uuid.uuid4().hex, 0, []
        self.url = 's3://%s/%s' % (patient.bucket, self.prefix)

    def line(self, *words):
        return [self.patient.program, words[0], '--bucket', self.url, *words[1:]]

    def popen(self, *words, changes=(), **more):
        settings = {'stdin': subprocess.DEVNULL, 'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, **more}
        process = subprocess.Popen(self.line(*words), env=self.patient.environment(dict(changes)), start_new_session=True, **settings)
        self.started.append(process)
        return process

    def end_all(self):
        """Each call has a process group of its own: what it left there goes with it."""
        for process in self.started:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
        self.started.clear()

    def call(self, *words, stdin=b'', changes=(), **more):
        process = self.popen(*words, changes=changes, stdin=subprocess.PIPE, **more)
        out, errors = process.communicate(stdin, timeout=SECONDS_MAX)
        return process.returncode, out, errors.decode(errors='replace')

    def run(self, *words, wanted=0, **more):
        status, out, errors = self.call('run', *words, **more)
        assert status == wanted, 'status %d instead of %d: %s' % (status, wanted, errors)
        return out

    def refuses(self, *words):
        status, out, errors = self.call(*words)
        lines = errors.splitlines()
        assert status == 64 and not out, (status, out, errors)
        assert lines[0].startswith('s3cache: ') and lines[1].startswith('usage: ') and len(lines) <= 3, errors

    def path(self):
        self.count += 1
        return os.path.join(self.patient.home, '%s-%d' % (self.prefix, self.count))

    def keys(self):
        found = self.patient.client().list_objects_v2(Bucket=self.patient.bucket, Prefix=self.prefix + '/')
        return [entry['Key'][len(self.prefix) + 1:] for entry in found.get('Contents', ())]

    def put(self, key, body, **metadata):
        self.patient.client().put_object(Bucket=self.patient.bucket, Key='%s/%s' % (self.prefix, key), Body=body, Metadata=metadata)

    def stat(self, key):
        status, out, errors = self.call('stat', '--json', key)
        assert status == 0, errors
        return json.loads(out)


class Command:
    """A script for sh that counts its runs: one line each in a file."""

    def __init__(self, shell, script):
        self.log = shell.path()
        self.words = ['sh', '-c', 'echo x >>"$0"; ' + script, self.log]

    def runs(self):
        return os.path.getsize(self.log) // 2 if os.path.exists(self.log) else 0


# ------------------------------------------------------------------------------------------------------------ what is kept


def run_keeps_output(shell):
    command = Command(shell, 'echo out; echo warning >&2')
    for _ in range(2):
        status, out, errors = shell.call('run', '--ttl', '1h', '--', *command.words)
        assert (status, out) == (0, b'out\n'), (status, out, errors)
    assert command.runs() == 1 and errors == '', 'what the command warned of is not kept: %r' % errors
    [key] = shell.keys()
    left = shell.stat(key)['expires_at'] - time.time()
    assert 3500 < left <= 3602, left


def run_keeps_every_byte(shell):
    for size, kind in ((0, 'text'), (5, 'text'), (3 << 20, 'bytes'), (17 << 20, 'bytes')):
        body = os.urandom(size) if kind == 'bytes' else b'text\n'[:size]
        key, path = 'bytes-%d' % size, shell.path()
        with open(path, 'wb') as file:
            file.write(body)
        assert shell.run('--key', key, '--', 'cat', path) == body
        os.unlink(path)
        assert shell.run('--key', key, '--', 'cat', path) == body, 'not from the cache'
        assert shell.call('get', key)[1] == body
        assert shell.stat(key)['kind'] == kind, shell.stat(key)


def run_does_not_keep_failures(shell):
    command = Command(shell, 'echo half; exit 3')
    for _ in range(2):
        assert shell.run('--', *command.words, wanted=3) == b'half\n'
    assert command.runs() == 2 and shell.keys() == [], shell.keys()


def run_ends_as_the_command_did(shell):
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV):
        shell.run('--', 'sh', '-c', 'kill -%d $$' % number, wanted=-number)
    assert shell.keys() == [], shell.keys()


def run_says_what_cannot_be_run(shell):
    plain = shell.path()
    with open(plain, 'w') as file:
        file.write('no program')
    for command, wanted in (('/no/such/command', 127), ('no-such-command', 127), (plain, 126)):
        status, out, errors = shell.call('run', '--', command)
        assert (status, out) == (wanted, b'') and errors.count('\n') == 1, (status, out, errors)
    status, out, errors = shell.call('run', '--input', '/no/such/input', '--', 'echo', 'x')
    assert (status, out) == (2, b'') and '/no/such/input' in errors, (status, out, errors)
    assert shell.keys() == [], shell.keys()


def run_refuses_wrong_usage(shell):
    for words in (['run'], ['run', '--'], ['run', 'echo', 'x'], ['run', '--json', '--', 'echo'], ['run', '--ttl', '0', '--', 'echo'],
                  ['run', '--ttl', '--', 'echo'], ['run', '--lease', 'soon', '--', 'echo'], ['run', '--input', '--', 'echo'],
                  ['run', '--env', '--', 'echo'], ['get', '--input', 'x', '--', 'k']):
        shell.refuses(*words)


def run_leaves_the_commands_words_alone(shell):
    words = ['--json', '--ttl', '--', 'run', '-o', '', 'a b', '--bucket=x', '*']
    out = shell.run('--', 'sh', '-c', 'printf "<%s>" "$@"', 'sh', *words)
    assert out == ''.join('<%s>' % word for word in words).encode(), out


# -------------------------------------------------------------------------------------------------- what it is kept under


def run_tells_runs_apart(shell):
    def key_of(*options, command=('echo', 'x'), **changes):
        before = set(shell.keys())
        shell.run(*options, '--', *command, changes=changes)
        return (set(shell.keys()) - before or {None}).pop()

    file = shell.path()
    with open(file, 'w') as out:
        out.write('one')
    assert key_of() and key_of(command=('echo', 'x', '')) and key_of(command=('echo', 'x y')) and key_of(command=('echo', 'x', 'y'))
    assert key_of('--input', file) and key_of('--env', 'WHO') and key_of('--env', 'WHO', WHO='') and key_of('--env', 'WHO', WHO='me')
    assert key_of('--input', file, file) and key_of('--input', file, '--env', 'WHO', 'HOME')
    assert key_of(WHO='another') is None, 'what is not named does not count'
    assert key_of('--input', file) is None
    with open(file, 'w') as out:
        out.write('two')
    assert key_of('--input', file), 'its contents count'
    os.rename(file, file + '-moved')
    assert key_of('--input', file + '-moved') is None, 'its name does not'


def run_under_a_name(shell):
    assert shell.run('--key', 'a name', '--', 'echo', 'x') == b'x\n'
    assert shell.call('get', 'a name')[1] == b'x\n'
    assert shell.run('--key', 'a name', '--', 'echo', 'something else') == b'x\n'
    assert shell.run('--key', 'a name', '--env', 'WHO', '--', 'echo', 'y') == b'y\n', 'what is named counts beside the name'
    assert sorted(shell.keys())[0] == 'a name' and sorted(shell.keys())[1].startswith('a name/'), shell.keys()


def run_replaces_what_is_over_or_broken(shell):
    now = time.time()
    shell.put('over', b'old', **{'expires-at': '%d' % (now - 10), 'kind': 'text'})
    shell.put('malformed', b'old', **{'expires-at': 'soon', 'kind': 'text'})
    shell.put('cut', b'\x1f\x8b\x08\0\0\0\0\0\0\3K', compressed='true', kind='text')
    shell.put('flipped', b'old', crc32c='AAAAAA==', kind='text')
    for key in ('over', 'malformed', 'cut', 'flipped'):
        for command in ('new', 'not run'):
            status, out, errors = shell.call('run', '--key', key, '--', 'echo', command)
            assert (status, out, errors) == (0, b'new\n', ''), (key, status, out, errors)
    shell.put('foreign', b'of another program')
    assert shell.run('--key', 'foreign', '--', 'echo', 'not run') == b'of another program'


# ---------------------------------------------------------------------------------------------------------- while it runs


def run_streams(shell):
    go = shell.path()
    process = shell.popen('run', '--', 'sh', '-c', 'echo one; until [ -e "$0" ]; do sleep 0.05; done; echo two', go)
    assert process.stdout.readline() == b'one\n', 'shown while the command runs'
    open(go, 'w').close()
    out, errors = process.communicate(timeout=SECONDS_MAX)
    assert (process.returncode, out) == (0, b'two\n'), (process.returncode, out, errors)


def run_passes_input(shell):
    assert shell.run('--key', 'input', '--', 'cat', stdin=b'from standard input') == b'from standard input'


def memory_peak(pid):
    """Bytes; 0 once it has ended. (What wait4 tells counts what we held ourselves when it was started.)"""
    with open('/proc/%d/status' % pid) as status:
        found = re.search(r'^VmHWM:\s+(\d+) kB', status.read(), re.M)
    return int(found[1]) * 1024 if found else 0


def run_holds_little(shell):
    for _ in range(2):
        process = shell.popen('run', '--key', 'large', '--', 'head', '-c', str(OUTPUT_BYTES), '/dev/zero')
        size = peak = 0
        while block := process.stdout.read(1 << 20):
            size += len(block)
        while process.poll() is None:
            peak = max(peak, memory_peak(process.pid))
            time.sleep(0.01)
        assert (process.returncode, size) == (0, OUTPUT_BYTES), (process.returncode, size)
        assert peak < MEMORY_BYTES_MAX, '%d MiB' % (peak >> 20)
        process.stdout.close()
        process.stderr.close()
    assert shell.stat('large')['size'] == OUTPUT_BYTES


def run_whose_output_nobody_reads(shell):
    def first_line(*words):
        process = shell.popen('run', *words)
        line = process.stdout.readline()
        process.stdout.close()
        status = process.wait(SECONDS_MAX)
        process.stderr.close()
        return line, status

    assert first_line('--key', 'endless', '--', 'yes') == (b'y\n', -signal.SIGPIPE)
    assert shell.keys() == [], 'half an output was kept'
    shell.run('--key', 'long', '--', 'sh', '-c', 'yes | head -c 4000000')
    assert first_line('--key', 'long', '--', 'false') == (b'y\n', -signal.SIGPIPE), 'from the cache as from the command'


@contextlib.contextmanager
def nonblocking_pipe():
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETFL, fcntl.fcntl(writer, fcntl.F_GETFL) | os.O_NONBLOCK)
    try:
        yield reader, writer
    finally:
        os.close(reader)


def slowly(reader):
    """All of it, by one who begins when the pipe is full: a writer that gives up then has lost the rest."""
    def waiting():
        return struct.unpack('i', fcntl.ioctl(reader, termios.FIONREAD, bytes(4)))[0]

    deadline = time.monotonic() + 10
    while waiting() < 60000 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    out = b''
    while block := os.read(reader, 1 << 16):
        out += block
    return out


def run_does_not_keep_what_was_cut_off(shell):
    """The command succeeds, but its reader has left before the end: what it said was not passed on, so it is not kept."""
    command = Command(shell, 'seq 1000000; echo end >&2')
    process = shell.popen('run', '--key', 'cut', '--', *command.words)
    assert process.stdout.readline() == b'1\n'
    process.stdout.close()
    status, errors = process.wait(SECONDS_MAX), process.stderr.read().decode()
    process.stderr.close()
    assert status == 1 and 'end\n' in errors and 'standard output' in errors, (status, errors)
    assert shell.keys() == [], 'half an output was kept'
    assert shell.run('--key', 'cut', '--', *command.words).count(b'\n') == 1000000
    assert command.runs() == 2


def run_into_a_full_device(shell):
    """Said, and not kept; from the cache the same."""
    def into_full(*words):
        with open('/dev/full', 'wb') as full:
            process = shell.popen('run', '--key', 'full', '--', *words, stdout=full)
            errors = process.communicate(timeout=SECONDS_MAX)[1].decode()
        assert process.returncode == 1 and errors.count('\n') == 1 and 'No space left' in errors, (process.returncode, errors)

    into_full('echo', 'hi')
    into_full('seq', '1000000')
    assert shell.keys() == [], shell.keys()
    shell.run('--key', 'full', '--', 'echo', 'hi')
    into_full('false')


def run_into_an_output_that_does_not_block(shell):
    """Neither of the two loses anything: the one that ran, and the one from the cache."""
    wanted = b''.join(b'%d\n' % i for i in range(1, 100001))
    for command in ('seq', 'false'):
        with nonblocking_pipe() as (reader, writer):
            process = shell.popen('run', '--key', 'slow', '--', command, '100000', stdout=writer)
            os.close(writer)
            assert slowly(reader) == wanted and process.wait(SECONDS_MAX) == 0, process.stderr.read()


def run_where_children_are_not_waited_for(shell):
    """With SIGCHLD ignored by the parent, as some service managers do, a failure is a failure still."""
    script = 'import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])'
    line = [sys.executable, '-c', script, *shell.line('run', '--', 'sh', '-c', 'echo half; exit 3')]
    done = subprocess.run(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=shell.patient.environment({}), timeout=SECONDS_MAX)
    assert (done.returncode, done.stdout) == (3, b'half\n'), done
    assert shell.keys() == [], 'a failure was kept'


def run_renews_while_its_output_blocks(shell):
    """The lease is short and the reader slow: who comes meanwhile waits, instead of running the command as well."""
    command = Command(shell, 'seq 200000')
    words = ['run', '--lease', '6s', '--key', 'leased', '--', *command.words]
    first = shell.popen(*words)
    assert first.stdout.readline() == b'1\n'
    second = shell.popen(*words)
    time.sleep(8)  # longer than the lease: nothing is read of the first meanwhile
    assert command.runs() == 1, 'it was run again while the first one was still at it'
    assert first.communicate(timeout=SECONDS_MAX)[0].endswith(b'\n200000\n')
    out, errors = second.communicate(timeout=SECONDS_MAX)
    assert (second.returncode, out.count(b'\n')) == (0, 200000) and command.runs() == 1, (command.runs(), errors)


def run_before_a_store_that_stops_in_the_middle(shell):
    """Half a body, and then nothing: the command runs after ten seconds at most, and not after three attempts of twenty."""
    def serve(server):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                connections.append(connection)
                connection.recv(1 << 16)
                connection.sendall(b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 100000\r\n\r\nhalf')

    connections = []
    with socket.create_server(('127.0.0.1', 0)) as server:
        threading.Thread(target=serve, args=(server,), daemon=True).start()
        began = time.monotonic()
        endpoint = {'AWS_ENDPOINT_URL': 'http://127.0.0.1:%d' % server.getsockname()[1]}
        status, out, errors = shell.call('run', '--', 'echo', 'out', changes=endpoint)
        took = time.monotonic() - began
    assert (status, out) == (0, b'out\n') and errors.count('\n') == 1, (status, out, errors)
    assert took < 20, took  # ten, and what a slow machine adds; without the bound it was 69


def run_hands_signals_on(shell):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        script = 'trap "echo caught; exit 7" %d; echo ready; while :; do sleep 0.05; done' % number
        process = shell.popen('run', '--', 'sh', '-c', script)
        assert process.stdout.readline() == b'ready\n'
        process.send_signal(number)
        out, errors = process.communicate(timeout=SECONDS_MAX)
        assert (process.returncode, out) == (7, b'caught\n'), (process.returncode, out, errors)
    assert shell.keys() == [], shell.keys()


def run_leaves_signals_as_they_were(shell):
    script = 'import signal; print(signal.getsignal(signal.SIGPIPE), signal.getsignal(signal.SIGINT) is signal.default_int_handler)'
    out = shell.run('--', sys.executable, '-c', 'import os; ' + script.replace('signal.getsignal(signal.SIGPIPE)', '"-"')).decode()
    assert out == '- True\n', out
    shell.run('--', 'sh', '-c', 'kill -PIPE $$', wanted=-signal.SIGPIPE)


# --------------------------------------------------------------------------------------------------- without a cache


def run_without_a_cache(shell):
    """Whatever is wrong with the cache the command runs, and one line says why it will run again."""
    nobody = {'AWS_ACCESS_KEY_ID': None, 'AWS_SECRET_ACCESS_KEY': None}
    for changes in ({'AWS_ENDPOINT_URL': 'http://127.0.0.1:%d' % closed_port()}, {'AWS_SECRET_ACCESS_KEY': WRONG_SECRET}, nobody):
        for script, wanted in (('echo out', 0), ('echo out; exit 5', 5)):
            command = Command(shell, script)
            for _ in range(2):
                status, out, errors = shell.call('run', '--', *command.words, changes=changes)
                assert (status, out) == (wanted, b'out\n') and errors.count('\n') == 1, (changes, status, out, errors)
                assert errors.startswith('s3cache: not cached: ') and WRONG_SECRET not in errors, errors
            assert command.runs() == 2
    assert shell.keys() == [], shell.keys()


def run_without_room_for_a_long_output(shell):
    """Which is a file before it is printed. What fits into memory needs none."""
    nowhere = {'TMPDIR': '/no/such/folder'}
    for size, wanted, told in ((1 << 20, b'x', 0), (20 << 20, b'y', 1)):
        shell.run('--key', 'room', '--', 'sh', '-c', 'head -c %d /dev/zero | tr "\\0" x' % size)
        status, out, errors = shell.call('run', '--key', 'room', '--', 'printf', 'y', changes=nowhere)
        assert (status, out[:1], errors.count('\n')) == (0, wanted, told), (status, len(out), errors)
        assert not told or errors.startswith('s3cache: not cached: '), errors
        shell.call('rm', 'room')


def run_before_a_store_that_hangs(shell):
    """The command waits ten seconds for it, and no longer: connections are taken, and never answered."""
    with socket.create_server(('127.0.0.1', 0)) as silent:
        began = time.monotonic()
        endpoint = {'AWS_ENDPOINT_URL': 'http://127.0.0.1:%d' % silent.getsockname()[1]}
        status, out, errors = shell.call('run', '--', 'echo', 'out', changes=endpoint)
        assert (status, out) == (0, b'out\n') and errors.count('\n') == 1, (status, out, errors)
        assert time.monotonic() - began < 40, time.monotonic() - began  # without that bound: a minute at least


def run_before_credentials_that_hang(shell):
    """The same with the helper that is to bring the keys, also when they are over by the time that the command has ended."""
    mark, changes = hanging_helper(shell.patient)
    began = time.monotonic()
    status, out, errors = shell.call('run', '--', 'echo', 'out', changes=changes)
    took = time.monotonic() - began
    assert os.path.exists(mark), 'no helper was started'
    assert (status, out) == (0, b'out\n') and errors.count('\n') == 1 and 'credentials' in errors, (status, out, errors)
    assert took < 40, took  # ten, and what a slow machine adds; a helper has 60


def run_after_whose_end_credentials_hang(shell):
    """They were good for a few seconds, the command takes longer, and the helper does not answer a second time."""
    mark, once = shell.path(), shell.path()
    keys = {'Version': 1, 'AccessKeyId': shell.patient.access_key, 'SecretAccessKey': shell.patient.secret_key,
            'Expiration': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(time.time() + 20))}
    helper = shell.patient.file('hangs-later', '#!/bin/sh\nif [ -e %s ]; then : >%s; exec sleep 600; fi\n: >%s\necho \'%s\'\n'
                                % (once, mark, once, json.dumps(keys)))
    path = shell.patient.file('config-that-hangs-later', '[default]\ncredential_process = /bin/sh %s\n' % helper)
    changes = {'AWS_CONFIG_FILE': path, 'AWS_ACCESS_KEY_ID': None, 'AWS_SECRET_ACCESS_KEY': None}
    process = shell.popen('run', '--', 'sh', '-c', 'sleep 21; echo out', changes=changes)
    assert process.stdout.readline() == b'out\n', process.stderr.read()
    began = time.monotonic()
    errors = process.communicate(timeout=SECONDS_MAX)[1].decode()
    took = time.monotonic() - began
    assert process.returncode == 0 and os.path.exists(mark), (process.returncode, errors)
    assert took < 40 and errors.count('\n') == 1 and 'credentials' in errors, (took, errors)
    assert [key for key in shell.keys() if not key.startswith('.s3cache/')] == [], shell.keys()


def run_in_no_such_bucket(shell):
    status, out, errors = shell.call('run', '--bucket', 's3://s3cache-' + uuid.uuid4().hex, '--', 'echo', 'out')
    assert (status, out) == (0, b'out\n') and 'NoSuchBucket' in errors and errors.count('\n') == 1, (status, out, errors)


def run_by_several_at_once(shell):
    """More of this, with owners that die and clocks that are off: stampede.py."""
    command = Command(shell, 'sleep 1; echo out')
    results = []
    threads = [threading.Thread(target=lambda: results.append(shell.call('run', '--', *command.words))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [(0, b'out\n', '')] * 5, results
    assert command.runs() == 1, command.runs()
    assert len(shell.keys()) == 1, shell.keys()


# ------------------------------------------------------------------------------------------------------------------ rules


def lifecycle_prints_rules(shell):
    status, out, errors = shell.call('lifecycle', '--expire', '30', '--uploads', '2d')
    assert status == 0, errors
    space = {'s3': 'http://s3.amazonaws.com/doc/2006-03-01/'}
    rules = xml.etree.ElementTree.fromstring(out).findall('s3:Rule', space)
    assert [rule.findtext('s3:Filter/s3:Prefix', None, space) for rule in rules] == [shell.prefix + '/'] * 2
    assert rules[0].findtext('s3:AbortIncompleteMultipartUpload/s3:DaysAfterInitiation', None, space) == '2'
    assert rules[1].findtext('s3:Expiration/s3:Days', None, space) == '30'
    status, out, errors = shell.call('lifecycle', '--json', '--expire', '30', '--uploads', '0')
    assert [rule['Expiration'] for rule in json.loads(out)['Rules']] == [{'Days': 30}], out
    for wrong in ('1.5', '-1', '', 'x', '7w', '99999999'):
        shell.refuses('lifecycle', '--expire=' + wrong)


def lifecycle_names_the_line_that_installs(shell):
    """What it prints is what the AWS tool takes; it installs nothing by itself."""
    client, bucket = shell.patient.client(), shell.patient.bucket
    status, out, errors = shell.call('lifecycle', '--json', '--expire', '31')
    assert status == 0 and 'aws s3api put-bucket-lifecycle-configuration --bucket %s ' % bucket in errors, errors
    try:
        client.get_bucket_lifecycle_configuration(Bucket=bucket)
        raise AssertionError('it was installed')
    except ClientError:
        pass
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=json.loads(out))  # as the AWS tool does
    try:
        rules = client.get_bucket_lifecycle_configuration(Bucket=bucket)['Rules']
        days = [rule['Expiration']['Days'] for rule in rules if 'Expiration' in rule]
        assert len(rules) == 2 and days == [31], rules
    finally:
        client.delete_bucket_lifecycle(Bucket=bucket)
    shell.refuses('lifecycle', '--install')


# ------------------------------------------------------------------------------------------------------- the other commands


def help_of_one_command(shell):
    status, out, errors = shell.call('help')
    assert status == 0 and errors == '' and all(b'  ' + name in out for name in (b'set ', b'get ', b'ls ', b'run ', b'doctor')), out
    for words in (['help', 'set'], ['set', '--help']):
        status, out, errors = shell.call(*words)
        assert status == 0 and b'--if-absent' in out and b'presign' not in out, out
    for words in (['help', 'nothing'], ['nothing'], ['set'], ['get'], ['get', 'a', 'b'], ['get', '--ttl', '1h', 'k'], ['touch', 'k']):
        shell.refuses(*words)


def options_that_are_part_of_a_url(shell):
    """They mean what the variable of the same text means, and are not looked for in the prefix."""
    def url(bucket, *options, **changes):
        words = ['presign', '--bucket', bucket, *options, 'k']
        status, out, errors = shell.call(*words, changes={'AWS_ENDPOINT_URL': None, **changes})
        assert status == 0, (words, errors)
        return out.decode().split('X-Amz-Date')[0]

    for endpoint in ('http://store.example/a%20b', 'http://store.example/a&b', 'http://store.example/a=b', 'http://store.example'):
        wanted = url('s3://bucket/x', AWS_ENDPOINT_URL=endpoint)
        assert wanted.startswith('http://store.example/'), wanted
        assert url('s3://bucket/x', '--endpoint', endpoint) == wanted
        for query in ('endpoint=http://other.example', 'checksums=own&endpoint=http://other.example&path_style=true'):
            assert url('s3://bucket/x?' + query, '--endpoint', endpoint, '--region', 'us-east-1') == wanted
    for prefix in ('x&endpoint=y', 'x&region=y'):
        out = url('s3://bucket/' + prefix, '--endpoint', 'http://store.example', '--region', 'eu-west-3')
        assert out.startswith('http://store.example/bucket/x%26') and '%2Feu-west-3%2F' in out, out


def options_that_are_long(shell):
    """Are refused, or taken: nothing that is typed ends the program by its length."""
    digits, name = '1' * 100000, 'x' * 120000
    for words in (['touch', '--ttl', digits, 'k'], ['presign', '--expires', digits + 'd', 'k'], ['run', '--lease', digits, '--', 'true'],
                  ['run', '--ttl', '0.' + '0' * 100000, '--', 'true'], ['lifecycle', '--expire', digits]):
        shell.refuses(*words)
    for words in (['presign', 'k'], ['stat', 'k'], ['lifecycle']):
        for bucket in ('s3://bucket/' + name, 's3://bucket?region=' + name, name):
            status = shell.call(*words, '--bucket', bucket, '--endpoint', shell.patient.endpoint)[0]
            is_good = words == ['lifecycle'] and '?' not in bucket and bucket != name  # whatever the length of its prefix
            assert status == (0 if is_good else 2), (words, bucket[:20], status)
    assert shell.run('--', 'echo', name) == name.encode() + b'\n', 'a word of a command may be long'


def clear_wants_a_prefix(shell):
    shell.put('kept', b'x')
    for words in (['clear', ''], ['clear'], ['clear', '--all', 'kept'], ['clear', '--all', ''], ['clear', 'a', 'b']):
        shell.refuses(*words)
    assert shell.keys() == ['kept']
    assert shell.call('clear', 'kept')[:2] == (0, b'1 entry removed\n')
    assert shell.call('clear', '--all')[:2] == (0, b'0 entries removed\n')


def purge_counts(shell):
    for key in ('a', 'b'):
        shell.put(key, b'x', **{'expires-at': '1000000000'})
    shell.put('c', b'x')
    assert shell.call('purge', 'a')[:2] == (0, b'1 expired entry removed\n')
    assert shell.call('purge')[:2] == (0, b'1 expired entry removed\n')
    assert shell.keys() == ['c']


def ls_long(shell):
    shell.put('expired', b'x' * 12, **{'expires-at': '%d' % (time.time() - 3600), 'kind': 'text'})
    shell.call('set', '--ttl', '1h', '--json', 'later', stdin=b'[1]')
    shell.call('set', '--gzip', 'never', stdin=b'y' * 100000)
    status, out, errors = shell.call('ls', '-l')
    expired, later, never = out.decode().splitlines()
    assert status == 0 and expired.split()[:3] == ['text', '12', 'B'] and 'EXPIRED 60 min ago' in expired, out
    assert later.startswith('json ') and re.search(r'expires in (59|60) min +later$', later), later
    assert never.startswith('bytes ') and ' gzip ' in never and re.search(r'never expires +never$', never), never


def set_says_what_is_not_checked(shell):
    body = b'"' + b'x' * (17 << 20)  # no JSON: it has no end
    status, out, errors = shell.call('set', '--json', 'unchecked', stdin=body)
    assert status == 0 and errors.count('\n') == 1 and 'without a check' in errors, errors
    assert shell.call('set', '--json', 'checked', stdin=body[:1000])[0] == 2
    assert shell.keys() == ['unchecked']


def set_draws_what_the_store_has(shell):
    """Not what lies in a buffer of this machine: this store takes a connection, and nothing else."""
    path = shell.path()
    with open(path, 'wb') as file:
        file.write(bytes(1 << 20))
    with socket.create_server(('127.0.0.1', 0)) as silent:
        terminal, ours = pty.openpty()
        endpoint = {'AWS_ENDPOINT_URL': 'http://127.0.0.1:%d' % silent.getsockname()[1]}
        process = shell.popen('set', 'k', path, stderr=ours, changes=endpoint)
        os.close(ours)
        drawn = b''
        while b'%' not in drawn:
            drawn += os.read(terminal, 4096)
        assert b' 0 %' in drawn and b'#' not in drawn, drawn
        process.kill()
        os.close(terminal)


def get_into_what_is_no_plain_file(shell):
    """A device or a FIFO is written to, a symlink followed, a mode kept; a name of 255 bytes is a name."""
    shell.put('k', b'value')
    fifo, plain, link = shell.path(), shell.path(), shell.path()
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    assert shell.call('get', '-o', fifo, 'k')[0] == 0
    assert os.read(reader, 100) == b'value' and stat.S_ISFIFO(os.stat(fifo).st_mode)
    os.close(reader)
    assert shell.call('get', '-o', '/dev/null', 'k')[0] == 0 and stat.S_ISCHR(os.stat('/dev/null').st_mode)
    with open(plain, 'w') as file:
        file.write('old')
    os.chmod(plain, 0o600)
    os.symlink(plain, link)
    assert shell.call('get', '-o', link, 'k')[0] == 0 and os.path.islink(link)
    assert open(plain, 'rb').read() == b'value' and stat.S_IMODE(os.stat(plain).st_mode) == 0o600
    longest = os.path.join(shell.patient.home, 'n' * 255)
    assert shell.call('get', '-o', longest, 'k')[0] == 0 and open(longest, 'rb').read() == b'value'
    os.unlink(longest)


def get_into_an_output_that_does_not_block(shell):
    body = os.urandom(1 << 20)
    shell.put('large', body)
    with nonblocking_pipe() as (reader, writer):
        process = shell.popen('get', 'large', stdout=writer)
        os.close(writer)
        assert slowly(reader) == body and process.wait(SECONDS_MAX) == 0


def checks(program):
    bucket = os.environ.get('S3CACHE_TEST_BUCKET') or 's3cache-test'
    patient = Patient(program, os.environ['S3CACHE_TEST_ENDPOINT'], bucket, os.environ['AWS_ACCESS_KEY_ID'],
                      os.environ['AWS_SECRET_ACCESS_KEY'], os.environ.get('AWS_CA_BUNDLE'))
    patient.ensure_bucket()
    for name, check in list(globals().items()):
        if name.startswith(('run_', 'lifecycle_', 'help_', 'options_', 'clear_', 'purge_', 'ls_', 'set_', 'get_')):
            yield name.replace('_', ' '), check, Shell(patient)


def main():
    program = sys.argv[1] if len(sys.argv) > 1 else 'build/s3cache'
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.default_int_handler)  # what a script in the background ignores, our commands would too
    passed = failed = 0
    for name, check, shell in checks(program):
        try:
            check(shell)
        except Exception as error:  # whatever a check ends with, the others still run
            failed += 1
            print('FAIL  %s: %s: %s' % (name, type(error).__name__, error), flush=True)
        else:
            passed += 1
            print('ok    ' + name, flush=True)
        finally:
            shell.call('clear', '--all')
            shell.end_all()
    print('%d passed, %d failed' % (passed, failed))
    return 1 if failed or not passed else 0


if __name__ == '__main__':
    sys.exit(main())
