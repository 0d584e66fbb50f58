/**
 * VMs that wait for creates, with real guests: what comes of one is what comes of any other start, only sooner; none is ever given away
 * twice, none is left when there is no one to give it to.
 */
import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { readdir, readFile, stat } from 'node:fs/promises'
import { connect } from 'node:net'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { runCommand } from '../../packages/daemon/src/host/run-command.ts'
import { makeBusyboxImage } from '../harness/busybox-image.ts'
import { type DaemonProcess, startDaemon } from '../harness/daemon-process.ts'
import { execOverApi } from '../harness/exec-over-api.ts'
import { importImage } from '../harness/import-image.ts'
import { endProcessesNaming } from '../harness/processes.ts'
import { makeStep } from '../harness/qemu-driver.ts'
import { Scratch } from '../harness/scratch.ts'
import { assertHostInOrder, atRest, disksOf, processesOf, type ShownInstance } from './house-in-order.ts'

const SIZE = 2
const isRunning = (pid: number): boolean => existsSync(`/proc/${pid}`)
const SHAPE = { image: 'box', vcpus: 1, size: '256MB', overlay_size: '512MB' }

/** What a workload can see of its machine, but for who it is. */
const LOOK = [
  'sort /proc/mounts',
  'cut -d" " -f1-3 /proc/modules',
  'ls -R /dev',
  'find /sys/fs/cgroup -type d | sort',
  // The kernel tells a moment later that the card is up, and then gives it an address made of its MAC.
  'while ip addr | grep -q NO-CARRIER || ! ip addr | grep -q fe80::; do sleep 0.05; done',
  'ip addr | grep -v -e link/ether -e fe80:: -e valid_lft; ip route; ip -6 route | sort',
  'cat /proc/sys/net/ipv6/conf/eth0/disable_ipv6',
  'grep . /sys/block/vd*/size /sys/block/vd*/ro',
  'find / -xdev | sort',
  'grep -v 10.0.2.15 /etc/hosts; cat /etc/resolv.conf',
  'df -k / | tail -1',
].join('\n')

for (const board of ['qemu-microvm', 'qemu'] as const) {
  describe(`VMs that wait, ${board}`, () => {
    let scratch: Scratch
    let dir: string
    let daemon: DaemonProcess
    const begin = (env: Readonly<Record<string, string>> = {}): Promise<DaemonProcess> =>
      startDaemon({ dir, driver: board, env: { DORMOUSE_POOL_SIZE: String(SIZE), DORMOUSE_LOG_LEVEL: 'debug', ...env } })

    before(async () => {
      scratch = await Scratch.make()
      dir = join(scratch.path, 'd')
      daemon = await begin()
      const image = await makeBusyboxImage(scratch.path, { cmd: ['/bin/sleep', '1000000'] })
      await importImage(daemon, image.path, 'box')
    })
    after(async () => {
      await daemon?.stop()
      await endProcessesNaming(dir)
      await scratch[Symbol.asyncDispose]()
    })

    const waiting = async (): Promise<number> => {
      const { runtimes } = await daemon.client.get<{ runtimes: { name: string; waiting?: number }[] }>('/capabilities')
      return runtimes.find(({ name }) => name === board)?.waiting ?? 0
    }
    const untilWaiting = (count: number): Promise<unknown> =>
      pollUntil(`${count} VMs to wait`, async () => (await waiting()) === count, makeStep(120_000), { everyMs: 20 })
    const run = async (name: string, more: object = {}): Promise<ShownInstance> => {
      await daemon.client.post('/instances?wait=running', { name, ...SHAPE, ...more })
      const instance = await daemon.client.get<ShownInstance>(`/instances/${name}`)
      assert.equal(instance.state, 'Running', JSON.stringify(instance))
      return instance
    }
    const sh = async (name: string, script: string): Promise<string> => {
      const { exitCode, stdout, stderr } = await execOverApi(daemon.socket, name, { command: ['/bin/sh', '-c', script] })
      assert.equal(exitCode, 0, stderr)
      return stdout
    }
    /** What its kernel is not content with, but for when. */
    const complaints = async (name: string): Promise<string[]> =>
      (await sh(name, 'dmesg'))
        .split('\n')
        .filter((line) => /error|fail|warn|bug:|stall|call trace|in use/i.test(line))
        .map((line) => line.replace(/^\[ *[\d.]+\] /, ''))
    const remove = (name: string): Promise<void> => daemon.client.delete(`/instances/${name}`)
    interface Line {
      readonly msg?: string
      readonly origin?: string
      readonly instance?: string
      readonly kind?: string
      readonly isThere?: boolean
    }
    /** By the daemon that runs: what waited for one that was killed ended without a word. */
    const logged = async (message: string): Promise<Line[]> => {
      const lines = (await daemon.log())
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line) as Line)
      return lines.slice(lines.findLastIndex(({ msg }) => msg === 'QEMU is ready')).filter(({ msg }) => msg === message)
    }
    /** How many wait for what was started last: their number alone does not tell, while others are on their way out. */
    const waitingForTheLike = async (): Promise<number> => {
      const { kind } = (await logged('a VM was asked for')).at(-1) ?? {}
      const count = async (message: string, isMeant = (_: Line) => true): Promise<number> =>
        (await logged(message)).filter((line) => line.kind === kind && isMeant(line)).length
      const [made, taken, ended] = await Promise.all([
        count('a VM waits'),
        count('a VM was asked for', ({ isThere }) => isThere === true),
        count('a VM waits no longer'),
      ])
      return made - taken - ended
    }
    /** As many starts as may wait for, which a daemon that has only just begun knows nothing of. */
    const fill = async (more: object = {}): Promise<void> => {
      for (let start = 0; start < SIZE; start++) {
        await run('before', more)
        await remove('before')
      }
      const isFull = async (): Promise<boolean> => (await waitingForTheLike()) === SIZE
      await pollUntil(`${SIZE} VMs to wait for the like of the last start`, isFull, makeStep(120_000), { everyMs: 200 })
    }
    /** Where the VMs of its starts came from, in order. */
    const origins = async (): Promise<string[]> => (await logged('VM started')).map(({ origin }) => String(origin))
    const lastOrigin = async (): Promise<string | undefined> => (await origins()).at(-1)

    test('what comes of one that waited cannot be told from what comes of one that did not', { timeout: 240_000 }, async () => {
      await run('fresh')
      assert.equal(await lastOrigin(), 'golden')
      const expected = await sh('fresh', LOOK)
      await untilWaiting(1)
      await run('waited', { network: { ports: [{ host_port: 0, guest_port: 80 }] } })
      assert.equal(await lastOrigin(), 'pool')
      assert.equal(await sh('waited', LOOK), expected)
      assert.deepEqual(await complaints('waited'), await complaints('fresh'))
      assert.equal(await sh('waited', 'hostname; cat /etc/hostname'), 'waited\nwaited\n')
      const chance = 'head -c 16 /dev/urandom | od -An -tx1'
      assert.notEqual(await sh('waited', chance), await sh('fresh', chance))
      await atRest(daemon.client)
      await remove('fresh')
      await remove('waited')
    })

    test('its ports are published, its logs are its own, its disk is sound', { timeout: 240_000 }, async () => {
      await fill()
      const serve = ['/bin/sh', '-c', 'echo begins; while :; do echo -n from-guest | nc -l -p 80; done']
      const { id, network } = await run('serves', { cmd: serve, network: { ports: [{ host_port: 0, guest_port: 80 }] } })
      assert.equal(await lastOrigin(), 'pool')
      const port = network.ports?.[0]?.host_port ?? 0
      const answer = async (): Promise<string> => {
        const socket = connect(port, '127.0.0.1')
        socket.on('error', () => undefined)
        for await (const chunk of socket) return String(chunk)
        return ''
      }
      assert.equal(await pollUntil('an answer', () => answer().catch(() => ''), makeStep()), 'from-guest')
      const logs = join(dir, 'data/instances', id, 'logs')
      assert.equal(await readFile(join(logs, 'app.log'), 'utf8'), 'begins\n')
      assert.equal((await readFile(join(logs, 'journal'), 'utf8')).match(/"started"/g)?.length, 1)
      await sh('serves', 'dd if=/dev/urandom of=/root/file bs=1M count=8 2>/dev/null')
      await daemon.client.post('/instances/serves/stop')
      const [disk = ''] = disksOf(dir).get(id) ?? []
      await runCommand(['e2fsck', '-fn', join(dir, 'data/disks', disk)], { step: makeStep() })
      await remove('serves')
    })

    test('starts at the same moment get a VM each, with users of their own', { timeout: 240_000 }, async () => {
      await fill()
      const names = ['one', 'two', 'three']
      await Promise.all(names.map((name) => run(name)))
      assert.deepEqual((await origins()).slice(-3).sort(), ['golden', 'pool', 'pool'])
      for (const name of names) assert.equal(await sh(name, 'hostname'), `${name}\n`)
      await assertHostInOrder(dir, await atRest(daemon.client))
      const { vmms } = await processesOf(dir)
      const users = await Promise.all(vmms.map(({ pid }) => stat(`/proc/${pid}`).then(({ uid }) => uid)))
      assert.equal(new Set(users).size, process.geteuid?.() === 0 ? users.length : 1)
      for (const name of names) await remove(name)
    })

    test('one that hangs is given up, and another is woken in its place', { timeout: 240_000 }, async () => {
      await fill()
      const { shims, vmms } = await processesOf(dir)
      const isTheirs = (parent: number): boolean =>
        shims.some(({ pid, place }) => pid === parent && place.startsWith(join(dir, 'run/pool')))
      const hanging = vmms.filter(({ parent }) => isTheirs(parent))
      assert.equal(hanging.length, SIZE)
      for (const { pid } of hanging) process.kill(pid, 'SIGSTOP')
      await run('patient')
      assert.equal(await lastOrigin(), 'golden')
      assert.equal(await sh('patient', 'hostname'), 'patient\n')
      const { pid: other } = hanging.find(({ pid }) => isRunning(pid)) ?? {}
      assert.ok(other, 'only the one that was taken is ended')
      process.kill(other, 'SIGCONT')
      await assertHostInOrder(dir, await atRest(daemon.client))
      await remove('patient')
    })

    test('a second processor and a large disk are found by the first word', { timeout: 240_000 }, async () => {
      const large = { vcpus: 2, overlay_size: '12GB' }
      await fill(large)
      await run('large', large)
      assert.equal(await lastOrigin(), 'pool')
      assert.match(await sh('large', 'nproc; df -m / | tail -1'), /^2\n\S+ +1[12]\d\d\d /)
      await remove('large')
    })

    test('one that waited sleeps, wakes and is forked as any other', { timeout: 240_000 }, async () => {
      await fill()
      await run('naps', { cmd: ['/bin/sh', '-c', 'echo 42 > /dev/shm/kept; exec sleep 1000000'] })
      assert.equal(await lastOrigin(), 'pool')
      await sh('naps', 'until [ -e /dev/shm/kept ]; do sleep 0.1; done')
      for (let nap = 0; nap < 2; nap++) {
        await daemon.client.post('/instances/naps/standby', {})
        await daemon.client.post('/instances/naps/restore', {})
        assert.equal(await sh('naps', 'cat /dev/shm/kept'), '42\n')
      }
      await daemon.client.post('/instances/naps/fork', { name: 'child', from_running: true })
      assert.equal(await sh('child', 'cat /dev/shm/kept; hostname'), '42\nchild\n')
      await remove('child')
      await remove('naps')
    })

    test('a sleeper finds its VM made ready, and what has changed meanwhile is not taken for it', { timeout: 240_000 }, async () => {
      const lastRestore = async (): Promise<string | undefined> => (await logged('VM restored')).at(-1)?.origin
      const made = async (id: string): Promise<number> => (await logged('a VM waits')).filter(({ instance }) => instance === id).length
      /** Puts it to sleep, and waits until its VM is made ready. */
      const prepare = async (name: string): Promise<void> => {
        const { id } = await daemon.client.get<ShownInstance>(`/instances/${name}`)
        const before = await made(id)
        await daemon.client.post(`/instances/${name}/standby`, {})
        await pollUntil('a VM to be made ready', async () => (await made(id)) > before, makeStep(60_000))
      }
      const nap = async (): Promise<void> => {
        await daemon.client.post('/instances/naps/standby', {})
        await daemon.client.post('/instances/naps/restore', {})
      }
      await fill()
      await run('naps', { cmd: ['/bin/sh', '-c', 'echo 42 > /dev/shm/kept; echo x > /root/file; exec sleep 1000000'] })
      await sh('naps', 'until [ -e /root/file ]; do sleep 0.1; done')
      // Its place is beside the one that waits for a create.
      for (let round = 0; round < 3; round++) {
        await sh('naps', `head -c 8000000 /dev/urandom > /dev/shm/much; echo ${round} > /root/file`)
        const much = await sh('naps', 'md5sum < /dev/shm/much')
        await prepare('naps')
        const ports = [{ host_port: 0, guest_port: 80 + round }]
        await daemon.client.call('PATCH', '/instances/naps', { network: { ports } })
        await daemon.client.post('/instances/naps/restore', {})
        assert.equal(await lastRestore(), 'pool')
        assert.equal(await sh('naps', 'cat /dev/shm/kept /root/file; md5sum < /dev/shm/much'), `42\n${round}\n${much}`)
        await assertHostInOrder(dir, await atRest(daemon.client))
      }
      // At once: none is there yet.
      await nap()
      assert.equal(await lastRestore(), 'restore')
      // A fork of the sleeper freezes its disk, and a stop gives up its memory.
      await prepare('naps')
      await daemon.client.post('/instances/naps/fork', { name: 'child', target_state: 'Running' })
      await untilWaiting(1)
      await daemon.client.post('/instances/naps/restore', {})
      for (const name of ['naps', 'child']) assert.equal(await sh(name, 'cat /dev/shm/kept'), '42\n')
      await prepare('naps')
      await daemon.client.post('/instances/naps/stop')
      await untilWaiting(1)
      await prepare('child')
      await untilWaiting(2)
      await remove('child')
      assert.equal(await waiting(), 1)
      await remove('naps')
      await assertHostInOrder(dir, await atRest(daemon.client))
    })

    test('a start takes one too, and after a restart of the daemon it is held again', { timeout: 240_000 }, async () => {
      await run('comes')
      await sh('comes', 'echo kept > /root/file')
      await daemon.client.post('/instances/comes/stop')
      await fill()
      await daemon.client.post('/instances/comes/start?wait=running', {})
      assert.equal(await lastOrigin(), 'pool')
      assert.equal(await sh('comes', 'cat /root/file'), 'kept\n')
      for (const end of ['stop', 'kill'] as const) {
        await daemon[end]()
        // What waits is the daemon's alone and ends with it, also when it is killed.
        await untilNothingWaits()
        daemon = await begin()
        assert.equal(await sh('comes', 'cat /root/file'), 'kept\n')
        await fill()
      }
      await remove('comes')
      await daemon.stop()
      await untilNothingWaits()
      daemon = await begin()
      await assertHostInOrder(dir, await atRest(daemon.client))
    })

    test('a daemon that dies while an instance takes one leaves neither', { timeout: 240_000 }, async () => {
      await run('a')
      await daemon.client.post('/instances/a/stop')
      await fill()
      const { id } = await daemon.client.get<ShownInstance>('/instances/a')
      daemon.client.post('/instances/a/start', {}).catch(() => undefined)
      const isTaken = async (): Promise<boolean> => (await readdir(join(dir, 'run/vm'))).includes(id.slice(0, 12))
      await pollUntil('it to be taken', isTaken, makeStep(), { everyMs: 0, upToMs: 0 })
      await daemon.kill()
      daemon = await begin()
      const instances = await atRest(daemon.client)
      // It was either recorded or not, and is all the same one thing.
      assert.match(instances[0]?.state ?? '', /^(Stopped|Running)$/)
      await assertHostInOrder(dir, instances)
      await remove('a')
    })

    test('a daemon that dies before it has recorded which one an instance took leaves the instance as it was', {
      timeout: 240_000,
    }, async () => {
      await run('a')
      await daemon.client.post('/instances/a/stop')
      await daemon.stop()
      daemon = await begin({ DORMOUSE_CRASH_AT: 'start:record' })
      await fill()
      daemon.client.post('/instances/a/start', {}).catch(() => undefined)
      assert.equal(await daemon.exited, 'SIGKILL')
      assert.equal(await lastOrigin(), 'pool')
      daemon = await begin()
      const instances = await atRest(daemon.client)
      assert.equal(instances[0]?.state, 'Stopped')
      await assertHostInOrder(dir, instances)
      await daemon.client.post('/instances/a/start?wait=running', {})
      await remove('a')
    })

    test('a daemon that dies before it has recorded that a sleeper took its VM leaves it asleep as it was', {
      timeout: 240_000,
    }, async () => {
      await run('a', { cmd: ['/bin/sh', '-c', 'echo 42 > /dev/shm/kept; exec sleep 1000000'] })
      await sh('a', 'until [ -e /dev/shm/kept ]; do sleep 0.1; done')
      await daemon.stop()
      daemon = await begin({ DORMOUSE_CRASH_AT: 'restore:record' })
      await daemon.client.post('/instances/a/standby', {})
      await untilWaiting(1)
      daemon.client.post('/instances/a/restore', {}).catch(() => undefined)
      assert.equal(await daemon.exited, 'SIGKILL')
      daemon = await begin()
      const instances = await atRest(daemon.client)
      assert.equal(instances[0]?.state, 'Standby')
      await assertHostInOrder(dir, instances)
      await daemon.client.post('/instances/a/restore', {})
      assert.equal(await sh('a', 'cat /dev/shm/kept'), '42\n')
      await remove('a')
    })

    test('whoever wants none has none', { timeout: 240_000 }, async () => {
      await daemon.stop()
      for (const env of [{ DORMOUSE_POOL_SIZE: '0' }, { DORMOUSE_GOLDEN: 'false' }] as Readonly<Record<string, string>>[]) {
        daemon = await begin(env)
        for (const expected of env.DORMOUSE_GOLDEN === undefined ? ['golden', 'golden'] : ['boot']) {
          await run('a')
          assert.equal(await lastOrigin(), expected)
          await remove('a')
        }
        await daemon.stop()
      }
      daemon = await begin()
    })

    const untilNothingWaits = (): Promise<unknown> => {
      const isGone = async (): Promise<boolean> => {
        const { shims, vmms, helpers } = await processesOf(dir)
        const own = shims.filter(({ place }) => !place.startsWith(join(dir, 'run/pool'))).map(({ pid }) => pid)
        return shims.length === own.length && [...vmms, ...helpers].every(({ parent }) => own.includes(parent))
      }
      return pollUntil('those that wait to be gone', isGone, makeStep())
    }
  })
}
