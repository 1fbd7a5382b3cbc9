"""Twenty processes want the same value at the same moment: how many compute it, and do all get it?

    python3 tests/python/stampede.py [build/s3cache]

Programs: build/stampede_worker, which calls get_or_set, and `s3cache run`. The store: S3CACHE_TEST_ENDPOINT, bucket and
keys as for interop.py; then the program fake_s3 beside s3cache, also as a store that ignores write conditions. Prints one
line a check with its counts and 'N passed, N failed'; exit status 1 if one failed.
"""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid

from doctor import Patient, fake

PROCESSES = 20
COMPUTING_SECONDS = 1
LEASE_SECONDS = 8  # far more than computing takes on a machine under load, far less than a person waits
SECONDS_MAX = 90   # of one check, so that a hang is a failure


class Stampede:
    """What each process is to run; all begin when the last of them has been started."""

    def __init__(self, patient, lines, expired=False):
        self.patient, self.prefix = patient, 'stampede-' + uuid.uuid4().hex
        self.where = 's3://%s/%s' % (patient.bucket, self.prefix)
        self.log = os.path.join(patient.home, self.prefix)
        open(self.log, 'w').close()
        if expired:
            patient.client().put_object(Bucket=patient.bucket, Key=self.prefix + '/key', Body=b'old',
                                        Metadata={'expires-at': '%d' % (time.time() - 10), 'kind': 'text'})
        read_end, write_end = os.pipe()
        self.began = time.monotonic()  # before any of them can
        self.processes = [subprocess.Popen(lines(self, i), stdin=read_end, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                           env=patient.environment({}), start_new_session=True) for i in range(PROCESSES)]
        os.close(read_end)
        os.close(write_end)

    def computed(self):
        with open(self.log) as log:
            return [int(line) for line in log]

    def kill_the_first(self):
        """As soon as one computes."""
        while not self.computed():
            assert time.monotonic() - self.began < SECONDS_MAX, 'nobody computes'
            time.sleep(0.02)
        owner = self.computed()[0]
        os.kill(owner, signal.SIGKILL)
        os.killpg(owner, signal.SIGKILL)  # then the command that it ran, which it can no longer hear of

    def end(self, kill_the_first=False):
        """The values that they got, and what they said of it; the killed one's is None. None of them is left running."""
        results = []
        try:
            if kill_the_first:
                self.kill_the_first()
            for process in self.processes:
                out, errors = process.communicate(timeout=SECONDS_MAX)
                assert process.returncode in (0, -signal.SIGKILL), (process.returncode, errors)
                results.append(out.splitlines() if process.returncode == 0 else None)
        finally:
            for process in self.processes:
                if process.returncode is None:  # not waited for: its number is still its own
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        self.seconds = time.monotonic() - self.began
        return results

    def left_behind(self):
        found = self.patient.client().list_objects_v2(Bucket=self.patient.bucket, Prefix=self.prefix + '/')
        return sorted(entry['Key'][len(self.prefix) + 1:] for entry in found.get('Contents', ()))


def worker(ahead=lambda i: 0, computing=COMPUTING_SECONDS):
    def line(stampede, i):
        program = os.path.join(os.path.dirname(stampede.patient.program), 'stampede_worker')
        return [program, stampede.where, 'key', stampede.log, str(LEASE_SECONDS), str(computing), str(ahead(i))]
    return line


def command(computing='sleep %d' % COMPUTING_SECONDS):
    """`s3cache run` behind a shell that waits for the start; what it runs notes down who had it run."""
    script = 'read -r _; exec "$0" run --bucket "$1" --key key --lease %d -- sh -c \'echo $PPID >>"$0"; %s; ' \
             'echo computed by $PPID\' "$2"' % (LEASE_SECONDS, computing)
    return lambda stampede, _: ['sh', '-c', script, stampede.patient.program, stampede.where, stampede.log]


# The first goes on until it is killed, however late that is; the others are done at once. The worker: if told -1.
FIRST_GOES_ON = '[ "$(head -n 1 "$0")" != $PPID ] || exec sleep 600'


def requests(results):
    counts = [int(result[1].split(', ')[-1].split()[0]) for result in results if result and len(result) > 1]
    return ', %.1f requests each' % (sum(counts) / len(counts)) if counts else ''


def report(stampede, results, runs):
    return '%d processes, computed %d time%s, %.1f s%s' % (PROCESSES, runs, '' if runs == 1 else 's', stampede.seconds,
                                                          requests(results))


def check_once(patient, line, expired=False):
    stampede = Stampede(patient, line, expired)
    results, owners = stampede.end(), stampede.computed()
    assert len(owners) == 1, 'computed %d times' % len(owners)
    values = {result[0] for result in results}
    assert values == {'computed by %d' % owners[0]}, values
    assert stampede.left_behind() == ['key'], stampede.left_behind()
    return report(stampede, results, 1)


def check_killed(patient, line):
    stampede = Stampede(patient, line)
    results, owners = stampede.end(kill_the_first=True), stampede.computed()
    survivors = [result for result in results if result]
    assert len(survivors) == PROCESSES - 1, results
    assert len(owners) == 2, 'computed %d times' % len(owners)
    values = {result[0] for result in survivors}
    assert values == {'computed by %d' % owners[1]}, values
    assert stampede.seconds >= LEASE_SECONDS - 2, 'taken over after %.1f s' % stampede.seconds  # clocks are read in seconds
    assert stampede.left_behind() == ['key'], stampede.left_behind()
    return report(stampede, results, 2)


def check_unvouched(patient, line):
    """Where the store ignores conditions a lease is a best effort: all have a value, and it is not computed by each."""
    stampede = Stampede(patient, line)
    results, owners = stampede.end(), stampede.computed()
    values = {result[0] for result in results}
    assert values <= {'computed by %d' % owner for owner in owners}, values
    assert len(owners) < PROCESSES // 2, 'computed %d times' % len(owners)
    assert stampede.left_behind() == ['key'], stampede.left_behind()
    return report(stampede, results, len(owners))


def checks_on(patient, name):
    yield name + ': get_or_set', lambda: check_once(patient, worker())
    yield name + ': get_or_set over an expired entry', lambda: check_once(patient, worker(), expired=True)
    yield name + ': get_or_set, clocks a minute apart', lambda: check_once(patient, worker(lambda i: i * 60 / (PROCESSES - 1) - 30))
    yield name + ': get_or_set, the owner killed', lambda: check_killed(patient, worker(computing=-1))
    yield name + ': run', lambda: check_once(patient, command())
    yield name + ': run over an expired entry', lambda: check_once(patient, command(), expired=True)
    yield name + ': run, the owner killed', lambda: check_killed(patient, command(FIRST_GOES_ON))


def run_checks(checks):
    """Those of one store side by side: they mostly wait. How many passed and failed."""
    outcomes = []

    def run(name, check):
        try:
            said, passed = check(), True
        except Exception as error:  # whatever a check ends with, the others still run
            said, passed = '%s: %s' % (type(error).__name__, error), False
        print('%s  %s: %s' % ('ok  ' if passed else 'FAIL', name, said), flush=True)
        outcomes.append(passed)

    threads = [threading.Thread(target=run, args=check) for check in checks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes.count(True), outcomes.count(False)


def stores(program):
    if os.environ.get('S3CACHE_TEST_ENDPOINT'):
        patient = Patient(program, os.environ['S3CACHE_TEST_ENDPOINT'], os.environ.get('S3CACHE_TEST_BUCKET') or 's3cache-test',
                          os.environ['AWS_ACCESS_KEY_ID'], os.environ['AWS_SECRET_ACCESS_KEY'], os.environ.get('AWS_CA_BUNDLE'))
        patient.ensure_bucket()
        yield list(checks_on(patient, 'the store'))
    with fake(program) as patient:
        yield list(checks_on(patient, 'fake'))
    with fake(program, '--quirk', 'ignore-conditional-put', '--quirk', 'ignore-conditional-delete') as patient:
        yield [('ignores conditions: get_or_set', lambda: check_unvouched(patient, worker())),
               ('ignores conditions: run', lambda: check_unvouched(patient, command()))]


def main():
    program = sys.argv[1] if len(sys.argv) > 1 else 'build/s3cache'
    counts = [run_checks(checks) for checks in stores(program)]
    passed, failed = (sum(column) for column in zip(*counts))
    print('%d passed, %d failed' % (passed, failed))
    return 1 if failed or not passed else 0


if __name__ == '__main__':
    sys.exit(main())
