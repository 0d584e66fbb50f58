/**
 * The anchor of `api_overhead`: the VMM's own work for an instance and nothing else. A bare client of the driver gives QEMU the
 * same command line and the same QMP commands, talks to the same agent, and keeps no records, serves no requests, makes no disks.
 */
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { assetsIn } from '../packages/daemon/src/config/assets.ts'
import { configOf } from '../packages/daemon/src/config/config.ts'
import { Disks } from '../packages/daemon/src/disks/disks.ts'
import { GuestClient, type GuestConfig } from '../packages/daemon/src/guest/guest-client.ts'
import { createHypervisors } from '../packages/daemon/src/hypervisor-set.ts'
import type { Hypervisor } from '../packages/daemon/src/hypervisors/hypervisor.ts'
import type { VmSpec } from '../packages/daemon/src/hypervisors/vm-spec.ts'
import type { Step } from '../packages/daemon/src/lib/step.ts'
import { silentLogger } from '../packages/daemon/src/log.ts'
import { Paths } from '../packages/daemon/src/paths.ts'
import { REPOSITORY } from '../test/harness/daemon-process.ts'

const USER = { uid: 2_000_000_000, gid: 2_000_000_000 }
const MAC = '02:64:6d:00:00:02'
const OVERLAY_BYTES = 10 * 2 ** 30

export interface BareMachines extends AsyncDisposable {
  /** Milliseconds from the driver's start to the agent's answer that a second program has run. The machine is ended afterwards. */
  run(): Promise<number>
}

/** Machines of one shape, with a golden boot of their own, which is made now. */
export async function bareMachines(options: {
  dir: string
  hypervisor: 'qemu' | 'qemu-microvm'
  rootfs: string
  memoryMib: number
  config: GuestConfig
}): Promise<BareMachines> {
  const { dir, hypervisor, rootfs, memoryMib, config } = options
  await using stack = new AsyncDisposableStack()
  const paths = new Paths({ dataDir: join(dir, 'data'), runDir: join(dir, 'run') })
  for (const place of [paths.vmsDir, paths.cacheDir, paths.goldenDir]) await mkdir(place, { recursive: true, mode: 0o711 })
  const assets = assetsIn(join(REPOSITORY, 'build'))
  const isRoot = process.geteuid?.() === 0
  const uses = { config: configOf(new Map()), log: silentLogger, paths, assets, isRoot, stack, workDir: paths.goldenRunDir }
  const { drivers } = createHypervisors(uses)
  const driver = drivers.find(({ name }) => name === hypervisor)
  if (driver === undefined) throw new Error(`This host has no ${hypervisor}`)
  const disks = new Disks({ templatesDir: paths.diskTemplatesDir })
  let count = 0

  const run = async (): Promise<number> => {
    count += 1
    const id = `bare-${count}`
    const overlay = join(dir, `${id}.raw`)
    await disks.createOverlay(overlay, OVERLAY_BYTES, { step: step(), ...(isRoot ? { owner: USER } : {}) })
    const spec: VmSpec = {
      id,
      runDir: paths.vmRunDir(id),
      vcpus: 1,
      memoryMib,
      disks: [
        { role: 'rootfs', path: rootfs, format: 'raw', readOnly: true },
        { role: 'overlay', path: overlay, format: 'raw', readOnly: false },
        { role: 'modules', path: assets.modules, format: 'raw', readOnly: true },
      ],
      nic: { mac: MAC, backend: 'user', ports: [] },
      logs: { app: join(dir, `${id}.app`), vmm: join(dir, `${id}.vmm`), journal: join(dir, `${id}.journal`), maxBytes: 1 << 20 },
      ...(isRoot ? { user: USER } : {}),
    }
    return timed(driver, spec, config)
  }
  await run()
  const held = stack.move()
  return { run, [Symbol.asyncDispose]: () => held.disposeAsync() }
}

async function timed(driver: Hypervisor, spec: VmSpec, config: GuestConfig): Promise<number> {
  const from = performance.now()
  const vm = await driver.start(spec, step())
  try {
    await using guest = await GuestClient.connect(await vm.connectGuest(step()), step())
    await guest.go(config, step())
    const { code } = await (await guest.exec({ command: ['/bin/true'] }, step())).exit
    if (code !== 0) throw new Error(`/bin/true ended with ${code} in a bare machine`)
    return performance.now() - from
  } finally {
    await vm.kill()
  }
}

const step = (): Step => ({ signal: AbortSignal.timeout(120_000), log: silentLogger })
