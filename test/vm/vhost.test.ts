/**
 * Where guests run with KVM and the host has vhost-net, its kernel carries the frames between a guest and its TAP: seen by what QEMU has
 * open, and by the kernel's own thread, which works when the guest sends. In a network namespace of the test's own.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { HOST, type Lab, makeLab, OUTSIDE } from '../harness/bridged-lab.ts'
import { makeBusyboxImage } from '../harness/busybox-image.ts'
import { type DaemonProcess, startDaemon } from '../harness/daemon-process.ts'
import { execOverApi } from '../harness/exec-over-api.ts'
import { importImage } from '../harness/import-image.ts'
import { inOwnNetwork } from '../harness/own-network.ts'
import { processesNaming } from '../harness/processes.ts'

interface Shown {
  readonly id: string
  readonly name: string
}

const DEVICE = '/dev/vhost-net'
const FRAMES = 20

if (inOwnNetwork(import.meta.filename)) {
  let lab: Lab
  let daemon: DaemonProcess
  let acceleration: string | undefined
  const start = (): Promise<DaemonProcess> => startDaemon({ dir: join(lab.dir, 'd'), env: { DORMOUSE_NETWORK: 'bridged' } })
  before(async () => {
    lab = await makeLab()
    daemon = await start()
    const { runtimes } = await daemon.client.get<{ runtimes: { name: string; acceleration?: string }[] }>('/capabilities')
    acceleration = runtimes.find(({ name }) => name === 'qemu')?.acceleration
    const { path } = await makeBusyboxImage(join(lab.dir, 'image'), { cmd: ['/bin/sleep', '1000000'] })
    await importImage(daemon, path, 'box')
  })
  after(async () => {
    await daemon?.[Symbol.asyncDispose]()
    await lab?.[Symbol.asyncDispose]()
  })

  const run = (name: string, hypervisor: string): Promise<Shown> =>
    daemon.client.post('/instances?wait=running', {
      ...{ name, hypervisor, image: 'box', vcpus: 1, size: '256MB', overlay_size: '64MB' },
    })
  const sh = async (name: string, script: string): Promise<string> => {
    const { stdout, stderr } = await execOverApi(daemon.socket, name, { command: ['/bin/sh', '-c', script] })
    return `${stdout}${stderr}`.trim()
  }
  async function vmmOf({ id, name }: Shown): Promise<number> {
    const [vmm] = (await processesNaming(id)).filter(({ argv }) => argv[0]?.includes('qemu-system'))
    assert.ok(vmm, `no VMM runs for ${name}`)
    return vmm.pid
  }
  const opened = (pid: number): string[] => readdirSync(`/proc/${pid}/fd`).map((fd) => readlinkSync(`/proc/${pid}/fd/${fd}`))

  /** How often the kernel's thread for this VMM has gone to sleep again after work. Older kernels show it as a process, newer as a thread of the VMM. */
  function workOf(vmm: number): number {
    const places = [
      ...readdirSync('/proc').map((pid) => `/proc/${pid}`),
      ...readdirSync(`/proc/${vmm}/task`).map((tid) => `/proc/${vmm}/task/${tid}`),
    ]
    const thread = places.find((place) => nameOf(place) === `vhost-${vmm}`)
    assert.ok(thread, `no thread of the kernel works for the VMM ${vmm}`)
    return Number(/^voluntary_ctxt_switches:\s+(\d+)/m.exec(readFileSync(`${thread}/status`, 'latin1'))?.[1])
  }
  function nameOf(place: string): string {
    try {
      return readFileSync(`${place}/comm`, 'latin1').trim()
    } catch {
      return ''
    }
  }

  async function assertReaches({ name }: Shown): Promise<void> {
    assert.equal(await sh(name, `nc -w 30 ${OUTSIDE.ipv4} 9000 </dev/null`), `called by ${HOST.ipv4}`)
  }
  async function assertCarried(instance: Shown): Promise<void> {
    const vmm = await vmmOf(instance)
    assert.ok(opened(vmm).includes(DEVICE), opened(vmm).join(' '))
    const before = workOf(vmm)
    assert.match(
      await sh(instance.name, `ping -c ${FRAMES} -i 0.05 -W 30 ${HOST.ipv4}; ping -c 1 -W 30 ${OUTSIDE.ipv4}`),
      /1 packets received/,
    )
    // Each is asked for and answered by itself: none of these wakes the thread with another.
    assert.ok(workOf(vmm) - before >= FRAMES, `${workOf(vmm) - before} times for ${FRAMES} frames`)
    await assertReaches(instance)
  }

  const whyNot = (): string | undefined => {
    if (acceleration !== 'kvm') return 'guests do not run with KVM here, and beside an emulated one vhost is not used'
    return existsSync(DEVICE) ? undefined : 'the host has no vhost-net: modprobe vhost_net'
  }

  for (const hypervisor of ['qemu', 'qemu-microvm']) {
    test(`the host's kernel carries the frames of ${hypervisor}, from its golden boot on, and over naps and forks`, {
      timeout: 240_000,
    }, async (t) => {
      const why = whyNot()
      if (why !== undefined) return t.skip(why)
      const instance = await run('one', hypervisor)
      await assertCarried(instance)
      await sh('one', 'echo kept > /dev/shm/kept')
      for (let nap = 0; nap < 2; nap++) {
        await daemon.client.post('/instances/one/standby', {})
        await daemon.client.post('/instances/one/restore')
        await assertCarried(instance)
      }
      await daemon.client.post('/instances/one/fork', { name: 'two', from_running: true, target_state: 'Running' })
      const fork = await daemon.client.get<Shown>('/instances/two')
      await assertCarried(fork)
      await assertCarried(instance)
      assert.equal(await sh('two', 'cat /dev/shm/kept'), 'kept')
      for (const name of ['one', 'two']) await daemon.client.delete(`/instances/${name}`)
    })
  }

  test('a guest that slept wakes where the host has no vhost any more, and goes on without it where it has it again', {
    timeout: 240_000,
  }, async (t) => {
    const why = whyNot()
    if (why !== undefined) return t.skip(why)
    const instance = await run('one', 'qemu')
    await sh('one', 'echo kept > /dev/shm/kept')
    // No one opens a socket as a file. The mount is of the test's own namespace.
    const socket = createServer().listen(join(lab.dir, 'socket'))
    await once(socket, 'listening')
    for (const change of [
      () => execFileSync('mount', ['--bind', join(lab.dir, 'socket'), DEVICE]),
      () => execFileSync('umount', [DEVICE]),
    ]) {
      await daemon.client.post('/instances/one/standby', {})
      await daemon.stop()
      change()
      daemon = await start()
      await daemon.client.post('/instances/one/restore')
      assert.ok(!opened(await vmmOf(instance)).includes(DEVICE))
      await assertReaches(instance)
      assert.equal(await sh('one', 'cat /dev/shm/kept'), 'kept')
    }
    socket.close()
    await daemon.client.post('/instances/one/stop', {})
    await daemon.client.post('/instances/one/start?wait=running', {})
    await assertCarried(instance)
    await daemon.client.delete('/instances/one')
  })

  test('without KVM no VM has a part of it', { timeout: 240_000 }, async (t) => {
    if (acceleration === 'kvm') return t.skip('guests run with KVM here')
    const instance = await run('plain', 'qemu')
    assert.ok(!opened(await vmmOf(instance)).includes(DEVICE))
    await daemon.client.delete('/instances/plain')
  })
}
