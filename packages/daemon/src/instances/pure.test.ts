/** The pure parts: what a VM is made of, what a guest is told, how an end is put into words, what fits on the host. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { VmUsage } from '../hypervisors/hypervisor.ts'
import { silentLogger } from '../log.ts'
import { UserNetwork } from '../network/network.ts'
import { Paths } from '../paths.ts'
import { admitDemand, NOTHING } from './admission.ts'
import { diskRateOf } from './disk-rate.ts'
import { exitOf } from './exit-of.ts'
import { argvOf, guestConfigOf } from './guest-config-of.ts'
import { durationsAt, enterPhase, type Instance, type InstanceId, type Phases } from './instance.ts'
import { checkCommand, checkEnv, portsOf } from './limits.ts'
import { planOf, type ReclaimUses, reclaimMemory } from './memory-reclaim.ts'
import { TEST_IMAGE } from './test-house.ts'
import { vmSpecOf } from './vm-spec-of.ts'

const instance: Instance = {
  id: 'abcdefghijklmnopqrstuvwx' as InstanceId,
  name: 'web',
  createdAtMs: 0,
  image: 'test',
  imageDigest: TEST_IMAGE.digest,
  platform: 'linux/amd64',
  hypervisor: 'qemu',
  vcpus: 2,
  memoryBytes: 2 ** 30,
  hotplugBytes: 0,
  overlayBytes: 2 ** 30,
  network: { enabled: true, mac: '02:00:00:00:00:01', ports: [{ protocol: 'tcp', hostIp: '0.0.0.0', hostPort: 8080, guestPort: 80 }] },
  env: { LANG: 'de', B: '2' },
  tags: {},
  skipGuestAgent: false,
  skipKernelHeaders: false,
  uid: 2_097_152_000,
  state: 'Stopped',
  disk: ['top.qcow2', 'below.raw'],
  volumes: [],
  phases: { current: 'Stopped', sinceMs: 0, durations: {} },
}
const paths = new Paths({ dataDir: '/data', runDir: '/run/x' })
const inputs = {
  image: TEST_IMAGE,
  paths,
  network: new UserNetwork({ dns: [] }),
  modules: '/assets/modules',
  logMaxBytes: 1000,
  freshBoot: false,
  diskIo: { capacityBps: 2 ** 30, ratio: 2, cpus: 8 },
}
const guest = (more: Partial<Instance> = {}, config = TEST_IMAGE.config) =>
  guestConfigOf({ ...instance, ...more }, { image: { config }, network: new UserNetwork({ dns: ['192.0.2.1'] }), hasModules: true })

test('a VM has its rootfs read-only, its overlay writable, and every layer of every disk names its format', () => {
  const spec = vmSpecOf(instance, inputs)
  assert.deepEqual(
    spec.disks.map(({ role, readOnly, format }) => [role, readOnly, format]),
    [
      ['rootfs', true, 'raw'],
      ['overlay', false, 'qcow2'],
      ['modules', true, 'raw'],
    ],
  )
  assert.equal(spec.disks[1]?.path, '/data/disks/top.qcow2')
  assert.deepEqual(spec.disks[1]?.backing, [{ path: '/data/disks/below.raw', format: 'raw' }])
  assert.equal(spec.memoryMib, 1024)
  assert.deepEqual(spec.user, { uid: 2_097_152_000, gid: 2_097_152_000 })
  assert.deepEqual(spec.nic, { mac: instance.network.mac, backend: 'user', ports: instance.network.ports })
  assert.equal(spec.runDir, '/run/x/vm/abcdefghijkl')
})

test('a VM boots afresh when its instance asks for it, or when all do', () => {
  assert.equal(vmSpecOf(instance, inputs).freshBoot, false)
  assert.equal(vmSpecOf({ ...instance, freshBoot: true }, inputs).freshBoot, true)
  assert.equal(vmSpecOf(instance, { ...inputs, freshBoot: true }).freshBoot, true)
})

test('a VM without network has no nic, one without root no user of its own', () => {
  const { uid: _uid, ...rootless } = instance
  const spec = vmSpecOf({ ...rootless, network: { enabled: false, ports: [] } }, inputs)
  assert.equal(spec.nic, undefined)
  assert.equal(spec.user, undefined)
})

test('a guest gets the image’s environment under its own, with a PATH', () => {
  const { workload, hostname, network } = guest()
  assert.deepEqual(workload.env, { PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin', LANG: 'de', B: '2' })
  assert.equal(hostname, 'web')
  assert.deepEqual(network?.dns, ['192.0.2.1'])
  assert.match(guest().machineId, /^[0-9a-f]{32}$/)
  assert.equal(guest({ network: { enabled: false, ports: [] } }).network, undefined)
})

test('an entrypoint of one’s own leaves the image’s arguments out, as with Docker', () => {
  const image = { entrypoint: ['/entry'], cmd: ['serve'] }
  assert.deepEqual(argvOf({}, image), ['/entry', 'serve'])
  assert.deepEqual(argvOf({ cmd: ['x'] }, image), ['/entry', 'x'])
  assert.deepEqual(argvOf({ entrypoint: ['/own'] }, image), ['/own'])
  assert.deepEqual(argvOf({ entrypoint: ['/own'], cmd: ['x'] }, image), ['/own', 'x'])
})

test('an init as the command runs as systemd does, and is stopped the way that it understands', () => {
  const config = { ...TEST_IMAGE.config, cmd: ['/sbin/init'], stopSignal: '' }
  assert.deepEqual([guest({}, config).workload.kind, guest({}, config).workload.stopSignal], ['systemd', 'SIGRTMIN+3'])
  assert.deepEqual([guest().workload.kind, guest().workload.stopSignal], ['exec', 'SIGTERM'])
})

test('the image’s stop signal is the workload’s, an init’s too; without one it is SIGTERM', () => {
  const stopSignal = (config: Partial<typeof TEST_IMAGE.config>) => guest({}, { ...TEST_IMAGE.config, ...config }).workload.stopSignal
  assert.equal(stopSignal({ stopSignal: 'SIGQUIT' }), 'SIGQUIT')
  assert.equal(stopSignal({ stopSignal: 'SIGUSR2', cmd: ['/sbin/init'] }), 'SIGUSR2')
  assert.equal(stopSignal({ stopSignal: '' }), 'SIGTERM')
})

test('what the guest wrote of its end outweighs how its VM ended', () => {
  const vm = { kind: 'signaled', signal: 'SIGKILL', atMs: 7 } as const
  assert.deepEqual(exitOf([{ event: 'started' }, { event: 'exited', code: 3, message: 'three' }], vm), {
    code: 3,
    message: 'three',
    atMs: 7,
  })
  assert.deepEqual(exitOf([{ event: 'started' }], vm, { killed: true }).code, 137)
  assert.equal(exitOf([], vm, { killed: true }).code, undefined)
})

test('an end that the guest did not see is explained by its VM’s', () => {
  const said = (journal: Parameters<typeof exitOf>[0], vm: Parameters<typeof exitOf>[1]) => exitOf(journal, vm).message
  assert.match(said([{ event: 'started' }], { kind: 'exited', code: 0, atMs: 0 }), /powered off/)
  assert.match(said([], { kind: 'exited', code: 0, atMs: 0 }), /before its workload was started/)
  assert.match(said([], { kind: 'exited', code: 1, atMs: 0 }), /ended with code 1/)
  assert.match(said([], { kind: 'signaled', signal: 'SIGSEGV', atMs: 0 }), /killed by SIGSEGV/)
  assert.match(said([], { kind: 'lost', atMs: 0 }), /no one saw it end/)
})

test('what does not fit is named, with what is left', () => {
  const rooms = { vcpus: { host: 2, ratio: 4 }, memoryBytes: { host: 2 ** 33, ratio: 1 }, diskBytes: { host: 2 ** 40, ratio: 1 } }
  const capacity = { ...rooms, diskIoBps: { host: 2 ** 30, ratio: 2 }, diskFreeBytes: 2 ** 40 }
  const none = NOTHING
  admitDemand('a', { ...none, vcpus: 8, memoryBytes: 2 ** 33 }, none, capacity)
  assert.throws(() => admitDemand('a', { ...none, vcpus: 2, memoryBytes: 1 }, { ...none, vcpus: 7 }, capacity), {
    message: /CPU for a: it needs 2 vCPUs, 1 of 8 \(2 × 4\) is left/,
    detail: { resource: 'vcpus', asked: 2, free: 1, limit: 8, ratio: 4 },
  })
  assert.throws(
    () => admitDemand('a', { ...none, vcpus: 1, memoryBytes: 2 ** 30 }, { ...none, memoryBytes: 2 ** 33 - 2 ** 29 }, capacity),
    {
      message: /it needs 1GB, 512MB of 8GB is left/,
    },
  )
  assert.throws(() => admitDemand('a', { ...none, diskBytes: 2 ** 31 }, { ...none, diskBytes: 2 ** 40 - 2 ** 30 }, capacity), {
    message: /disk for a: it needs 2GB, 1GB of 1TB is left/,
  })
  assert.throws(() => admitDemand('a', { ...none, diskIoBps: 2 ** 30 }, { ...none, diskIoBps: 2 ** 31 - 2 ** 29 }, capacity), {
    message: /disk I\/O for a: it needs 1GB\/s, 512MB\/s of 2GB\/s \(1GB\/s × 2\) is left/,
  })
  admitDemand('a', { ...none, diskIoBps: 2 ** 40 }, none, { ...rooms, diskFreeBytes: 2 ** 40 })
  assert.throws(() => admitDemand('a', none, none, { ...capacity, diskFreeBytes: 1 }), { message: /disk space/ })
})

test('disks may move what was asked for, or the share of the processors', () => {
  const host = { capacityBps: 2 ** 30, ratio: 2, cpus: 8 }
  assert.equal(diskRateOf({ vcpus: 2, diskIoBps: 2 ** 20 }, host), 2 ** 20)
  assert.equal(diskRateOf({ vcpus: 2 }, host), 2 ** 29)
  assert.equal(diskRateOf({ vcpus: 1 }, { ...host, cpus: 1000 }), 2 ** 24)
  assert.equal(diskRateOf({ vcpus: 2 }, { ...host, capacityBps: 0 }), undefined)
})

test('time in a phase is counted up to now, and phases add up over lives', () => {
  const start: Phases = { current: 'Created', sinceMs: 100, durations: {} }
  const booting = enterPhase(start, 'Initializing', 150)
  const running = enterPhase(booting, 'Running', 170)
  assert.equal(enterPhase(running, 'Running', 999), running)
  assert.deepEqual(durationsAt(running, 270), { created: 50, initializing: 20, running: 100 })
  const again = enterPhase(enterPhase(running, 'Stopped', 180), 'Running', 200)
  assert.deepEqual(durationsAt(again, 205), { created: 50, initializing: 20, running: 15, stopped: 20 })
  // A clock that was set back counts nothing.
  assert.deepEqual(durationsAt(start, 50), { created: 0 })
})

test('a host port is asked for once for each protocol and address', () => {
  assert.equal(
    portsOf(
      [
        { hostPort: 1, guestPort: 1 },
        { hostPort: 1, guestPort: 1, protocol: 'udp' },
      ],
      '0.0.0.0',
    ).length,
    2,
  )
  assert.equal(
    portsOf(
      [
        { hostPort: 0, guestPort: 1 },
        { hostPort: 0, guestPort: 1 },
      ],
      '0.0.0.0',
    ).length,
    2,
  )
  assert.throws(
    () =>
      portsOf(
        [
          { hostPort: 1, guestPort: 1 },
          { hostPort: 1, guestPort: 2, hostIp: '127.0.0.1' },
        ],
        '0.0.0.0',
      ),
    { code: 'invalid_request' },
  )
  assert.throws(() => portsOf([{ hostPort: 1, guestPort: 0 }], '0.0.0.0'), { code: 'invalid_request' })
  assert.throws(() => portsOf([{ hostPort: 65_536, guestPort: 1 }], '0.0.0.0'), { code: 'invalid_request' })
})

test('memory is given back by those with the most of their own, until it is enough; why others do not is said', () => {
  const MB = 2 ** 20
  const candidate = (name: string, megabytes: number, obstacle?: string) => ({
    instance: { ...instance, name },
    privateBytes: megabytes * MB,
    obstacle,
  })
  const candidates = [
    candidate('small', 50),
    candidate('busy', 900, 'it is busy'),
    candidate('middle', 296),
    candidate('large', 596),
    candidate('more', 196),
  ]
  const shown = (wanted: number) =>
    planOf(candidates, wanted * MB).map(({ instance: { name }, bytes, status }) => `${name} ${status} ${bytes / MB}`)
  assert.deepEqual(shown(600), ['busy skipped 0', 'large planned 500', 'middle planned 200', 'more skipped 0', 'small protected 0'])
  const [roomy] = planOf([{ ...candidate('roomy', 596), instance: { ...instance, hotplugBytes: 2 ** 28 } }], MB)
  assert.match(String(roomy?.error), /added memory \(256MB\) stays/)
  assert.deepEqual(shown(1), ['busy skipped 0', 'large planned 500', 'middle skipped 0', 'more skipped 0', 'small protected 0'])
})

test('what is planned counts what is idle, as what is applied does; instances nap for the rest', async () => {
  const MB = 2 ** 20
  const held = { waiting: 30 * MB, bases: 20 * MB }
  const uses: ReclaimUses = {
    log: silentLogger,
    list: () => [{ ...instance, vm: {} as NonNullable<Instance['vm']> }],
    usage: async () => ({ memoryPrivateBytes: 196 * MB }) as VmUsage,
    obstacle: () => undefined,
    nap: async () => assert.fail('no one has to nap for so little'),
    waitingBytes: () => held.waiting,
    releaseWaiting: async () => held.waiting,
    releaseBases: async () => held.bases,
  }
  const asked = (bytes: number, dryRun: boolean) => reclaimMemory({ bytes, holdMs: 0, dryRun }, uses)
  const told = async (megabytes: number) => {
    const { plannedBytes, actions } = await asked(megabytes * MB, true)
    return [plannedBytes / MB, actions[0]?.status]
  }
  assert.deepEqual(await told(10), [30, 'skipped'])
  assert.deepEqual(await told(50), [50, 'skipped'])
  assert.deepEqual(await told(51), [150, 'planned'])
  assert.deepEqual(await told(0), [0, 'skipped'])
  const { plannedBytes, appliedBytes } = await asked(40 * MB, false)
  assert.deepEqual([plannedBytes, appliedBytes], [50 * MB, 50 * MB])
})

test('what is longer than a program can be given is refused as it is asked for, and what just fits is not', () => {
  const longest = 'x'.repeat(128 * 1024 - 1)
  checkCommand({ entrypoint: ['sh'], cmd: [longest] })
  assert.throws(() => checkCommand({ cmd: [`${longest}x`] }), { code: 'invalid_request', message: /131071 bytes/ })
  assert.throws(() => checkCommand({ entrypoint: ['é'.repeat(65_536)] }), { code: 'invalid_request' })
  checkEnv({ A: longest.slice(2) }, { hasEgress: false })
  assert.throws(() => checkEnv({ A: longest.slice(1) }, { hasEgress: false }), { code: 'invalid_request', message: /variable A is larger/ })
})
