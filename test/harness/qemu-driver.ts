/** The real QEMU drivers for a test: scratch directories, golden boots of their own, users of their own, and eyes for what is left. */
import { chown, mkdir, open, readdir, readFile, stat, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Duplex } from 'node:stream'
import { pino } from 'pino'
import { writeEmptyQcow2 } from '../../packages/daemon/src/disks/qcow2.ts'
import type { DriverUnderTest } from '../../packages/daemon/src/hypervisors/contract-suite.ts'
import type { HypervisorName } from '../../packages/daemon/src/hypervisors/hypervisor.ts'
import { createQemuDrivers, type QemuHypervisor, type QemuUses } from '../../packages/daemon/src/hypervisors/qemu/qemu.ts'
import type { VmSpec } from '../../packages/daemon/src/hypervisors/vm-spec.ts'
import type { Step } from '../../packages/daemon/src/lib/step.ts'
import { Memory } from '../../packages/daemon/src/memory/memory.ts'
import { Scratch } from './scratch.ts'
import { kvmProbeLimitMs } from './slow-host.ts'

const root = join(import.meta.dirname, '../..')
export const artefacts = {
  shimPath: join(root, 'build/shim/dormouse-shim'),
  networkHelperPath: join(root, 'build/shim/dormouse-net'),
  kernelPath: join(root, 'build/kernel/vmlinux'),
  initrdPath: join(root, 'build/guest/initrd.cpio'),
}

export interface GuestManners {
  awaitParked(stream: Duplex, step: Step): Promise<void>
  /** Talks to the guest until it answers. */
  greet(stream: Duplex, step: Step): Promise<void>
}

export interface QemuUnderTest extends DriverUnderTest {
  readonly hypervisor: QemuHypervisor
  readonly memory: Memory
  readonly dir: string
  makeSpec(changes?: Partial<VmSpec>): Promise<VmSpec>
}

const log = pino({ level: process.env.DORMOUSE_TEST_LOG ?? 'silent' })
const isRoot = process.geteuid?.() === 0
// Far from any real account; no two VMs of a test share one.
let nextUid = 600_000 + (process.pid % 1000) * 100

export const makeStep = (ms = 60_000): Step => ({ signal: AbortSignal.timeout(ms), log })

export async function qemuUnderTest(
  name: HypervisorName,
  guest: GuestManners,
  changes: Partial<QemuUses> = {},
  isNeeded: () => boolean = () => true,
): Promise<QemuUnderTest> {
  const scratch = await Scratch.make()
  const dir = scratch.path
  const memory = new Memory({
    goldenDir: join(dir, 'golden'),
    basesDir: join(dir, 'memory'),
    shimPath: artefacts.shimPath,
    log,
    isNeeded,
  })
  const drivers = createQemuDrivers({
    ...artefacts,
    memory,
    log,
    workDir: join(dir, 'work'),
    probeFile: join(dir, 'kvm.json'),
    ...(kvmProbeLimitMs === undefined ? {} : { kvmProbeLimitMs }),
    awaitParked: guest.awaitParked,
    ...(isRoot ? { goldenUser: { uid: nextUid++, gid: nextUid } } : {}),
    ...changes,
  })
  const hypervisor = drivers.find((driver) => driver.name === name)
  if (hypervisor === undefined) throw new Error(`no driver is called ${name}`)
  await mkdir(join(dir, 'run'), { mode: 0o711 })
  await mkdir(join(dir, 'memory'), { mode: 0o700 })
  let count = 0
  return {
    hypervisor,
    memory,
    dir,
    step: makeStep,
    greetGuest: guest.greet,
    async makeSpec(changes = {}) {
      const id = `vm${++count}`
      const files = join(dir, id)
      await mkdir(files, { mode: 0o711 })
      const user = isRoot ? { uid: ++nextUid, gid: nextUid } : undefined
      const disk = async (file: string, bytes: number): Promise<string> => {
        await writeFile(join(files, file), '', { mode: 0o600 })
        await truncate(join(files, file), bytes)
        if (user !== undefined) await chown(join(files, file), user.uid, user.gid)
        return join(files, file)
      }
      return {
        id,
        runDir: join(dir, 'run', id),
        vcpus: 1,
        memoryMib: 256,
        disks: [
          { role: 'rootfs', path: await disk('rootfs', 1 << 20), format: 'raw', readOnly: true },
          { role: 'overlay', path: await disk('overlay', 8 << 20), format: 'raw', readOnly: false },
        ],
        nic: { mac: '02:00:00:00:00:01', backend: 'user', ports: [] },
        logs: { app: join(files, 'app.log'), vmm: join(files, 'vmm.log'), journal: join(files, 'journal'), maxBytes: 1 << 20 },
        ...(user === undefined ? {} : { user }),
        ...changes,
      }
    },
    async makeLayer({ disks, id }) {
      const overlay = disks.find(({ role }) => role === 'overlay')
      if (overlay === undefined) throw new Error(`${id} has no overlay`)
      const layer = join(dir, id, `layer-${++count}.qcow2`)
      await using file = await open(layer, 'wx', 0o600)
      await writeEmptyQcow2(file, (await stat(overlay.path)).size)
      return layer
    },
    async leftovers(spec) {
      const files = await readdir(spec.runDir).catch(() => [])
      return [...(await processesOf(spec)), ...files.filter((file) => file !== 'exit')]
    },
    killVmm: ({ vmm }) => void process.kill(vmm.pid, 'SIGKILL'),
    killHolder: ({ shim }) => void process.kill(shim.pid, 'SIGKILL'),
    async [Symbol.asyncDispose]() {
      await memory[Symbol.asyncDispose]()
      await scratch[Symbol.asyncDispose]()
    },
  }
}

/** Every process of the VM: those that name its run directory, and those that run as its user. */
async function processesOf(spec: VmSpec): Promise<string[]> {
  const found: string[] = []
  for (const pid of await readdir('/proc')) {
    if (!/^\d+$/.test(pid)) continue
    const argv = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')
    const status = await readFile(`/proc/${pid}/status`, 'utf8').catch(() => '')
    const isItsUser = spec.user !== undefined && new RegExp(`^Uid:\\s+${spec.user.uid}\\s`, 'm').test(status)
    // A zombie has no command line and is only waiting for its parent to notice.
    if (argv !== '' && (argv.includes(`${spec.runDir}\0`) || isItsUser))
      found.push(`process ${pid}: ${argv.replaceAll('\0', ' ').slice(0, 80)}`)
  }
  return found
}
