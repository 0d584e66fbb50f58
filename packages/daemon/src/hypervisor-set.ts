/** The one place that names concrete drivers: for the daemon, and for the doctor who probes them without one. */
import { createHash } from 'node:crypto'
import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { AppError } from '@dormouse/api/errors.ts'
import type { Assets } from './config/assets.ts'
import type { Config } from './config/config.ts'
import { GuestClient } from './guest/guest-client.ts'
import { rehearse } from './guest/rehearsal.ts'
import { Cgroups, type CgroupsAnswer } from './host/cgroups.ts'
import { CloudHypervisor } from './hypervisors/cloud-hypervisor/cloud-hypervisor.ts'
import { FakeHypervisor } from './hypervisors/fake/fake.ts'
import { FirecrackerHypervisor } from './hypervisors/firecracker/firecracker.ts'
import type { BaseRef, Hypervisor } from './hypervisors/hypervisor.ts'
import {
  createQemuDrivers,
  dropStaleGoldenBoots,
  Pool,
  type PoolPlace,
  type QemuUses,
  type WaitingMachine,
} from './hypervisors/qemu/qemu.ts'
import type { Logger } from './log.ts'
import { checkState, readManifest } from './memory/capture-files.ts'
import { type CollectableMemory, type GoldenShape, type LayeredMemory, Memory } from './memory/memory.ts'
import type { Paths } from './paths.ts'

export interface DriverUses {
  readonly config: Config
  readonly log: Logger
  readonly paths: Paths
  readonly assets: Assets
  readonly isRoot: boolean
  readonly stack: AsyncDisposableStack
  /** Where golden boots and the KVM probe run while they are made. */
  readonly workDir: string
  /** Does a VM, a sleeping state or a snapshot stand on it? */
  readonly isNeeded: (base: BaseRef) => boolean
  /** Whose VMs wait for starts; absent where nothing is ever started. */
  readonly pool?: {
    /** Memory that admission has given to no instance. */
    readonly roomBytes: () => number
    readonly makeDisk: PoolPlace['makeDisk']
  }
}

export interface HypervisorSet {
  readonly drivers: readonly Hypervisor[]
  readonly memory: LayeredMemory
  /** What of it lies on disk; with golden boots that would be made differently now. */
  readonly kept: CollectableMemory & { isStale(facts: GoldenShape['facts']): Promise<boolean> }
  /** What limits each VM's processes on this host. */
  readonly cgroups: CgroupsAnswer
  /** Where those have theirs; absent where there are none. */
  readonly vmCgroups?: Cgroups
  /** Removes what a daemon left that died while it made a golden boot. Only for the daemon that holds the data directory: it ends what runs. */
  recover(): Promise<void>
}

/** The drivers of this configuration. What they hold open goes on the stack. Touches nothing of a daemon that runs. */
export function createHypervisors(uses: DriverUses): HypervisorSet {
  const { config, log, paths, assets, isRoot, stack, workDir } = uses
  if (config.hypervisor === 'fake') {
    return { drivers: [new FakeHypervisor()], memory: noMemory, kept: nothingKept, cgroups: noCgroups, recover: async () => undefined }
  }
  const { goldenDir, basesDir } = paths
  // An instance that one of those that wait becomes will stand on what it was woken from.
  const isNeeded = (base: BaseRef): boolean =>
    uses.isNeeded(base) || pool?.machines.some(({ handle }) => handle.machine?.base === base) === true
  const memory = stack.use(new Memory({ goldenDir, basesDir, shimPath: assets.shim, log, isNeeded, ...goldenLimitsOf(config) }))
  const goldenUid = config.instances.uidBase + config.instances.uidCount
  const pool = poolOf(uses)
  const cgroups = config.cgroups.enabled ? stack.use(Cgroups.prepare(cgroupNameOf(workDir))) : undefined
  log.info({ ...cgroups?.answer }, 'cgroups of VMs')
  const awaitParked: QemuUses['awaitParked'] = async (stream, step) => {
    await using guest = await GuestClient.connect(stream, step)
    if (guest.hello.phase !== 'parked')
      throw new AppError('internal_error', `The guest of a golden boot is ${guest.hello.phase}, not parked`)
  }
  const common = {
    memory,
    log,
    shimPath: assets.shim,
    kernelPath: assets.kernel,
    initrdPath: assets.initrd,
    workDir,
    ...(cgroups === undefined ? {} : { cgroups }),
    kvmProbeLimitMs: config.kvmProbeLimitMs,
    awaitParked,
    ...(isRoot ? { goldenUser: { uid: goldenUid, gid: goldenUid } } : {}),
  }
  const qemu = createQemuDrivers({
    ...common,
    networkHelperPath: assets.networkHelper,
    allowHostAccess: config.network.allowHostAccess,
    goldenBoots: config.golden.enabled,
    probeFile: paths.kvmProbe,
    ...(pool === undefined ? {} : { pool }),
  })
  const { searchPath } = config.vmms
  const firecracker = new FirecrackerHypervisor({
    ...common,
    program: { file: config.vmms.firecracker, searchPath },
    probeFile: paths.firecrackerProbe,
  })
  const cloudHypervisor = new CloudHypervisor({
    ...common,
    goldenBoots: config.golden.enabled,
    program: { file: config.vmms.cloudHypervisor, searchPath },
    probeFile: paths.cloudHypervisorProbe,
  })
  const drivers = [...qemu, firecracker, cloudHypervisor]
  const isStale = async (facts: GoldenShape['facts']): Promise<boolean> => {
    for (const driver of drivers) if (await driver.isStale(facts)) return true
    return false
  }
  return {
    drivers,
    memory,
    kept: {
      collectBases: (wanted) => memory.collectBases(wanted),
      collectGoldenBoots: (wanted) => memory.collectGoldenBoots(wanted),
      list: () => memory.list(),
      isStale,
    },
    cgroups: cgroups?.answer ?? { version: 'none', controllers: [], reason: 'they are turned off (DORMOUSE_CGROUPS)' },
    ...(cgroups === undefined ? {} : { vmCgroups: cgroups }),
    recover: async () => {
      await memory.sweepGoldenBoots(() => false)
      await memory.sweepScratch()
      await cgroups?.sweep()
      const [first] = drivers
      for (const dir of [workDir, paths.poolRunDir]) for (const name of namesIn(dir)) await first?.sweep(join(dir, name))
      // It has to ask the host first, which takes longer than a start of the daemon may.
      void dropStaleGoldenBoots({ isStale }, { memory, log })
    },
  }
}

const goldenLimitsOf = ({ golden: { maxGoldenBytes, maxGoldenBoots } }: Config) => ({ maxGoldenBytes, maxGoldenBoots })

/** Users of VMs that wait follow those of instances and the one of golden boots, as many as there are of instances. */
function poolOf({ config, log, paths, assets, isRoot, stack, pool }: DriverUses): PoolPlace | undefined {
  const { uidBase, uidCount } = config.instances
  if (pool === undefined || config.pool.size === 0 || !config.golden.enabled) return undefined
  if (!existsSync(assets.rehearsal)) {
    log.warn({ file: assets.rehearsal }, 'no VM waits for starts: what they rehearse with is missing')
    return undefined
  }
  const { roomBytes, makeDisk } = pool
  return {
    machines: stack.use(new Pool<WaitingMachine>({ size: config.pool.size, roomBytes, log })),
    dir: paths.poolRunDir,
    image: assets.rehearsal,
    makeDisk,
    rehearse,
    ...(isRoot ? { users: { base: uidBase + uidCount + 1, count: uidCount } } : {}),
  }
}

/** Each daemon's are its own, whatever others run on the host. */
export const cgroupNameOf = (workDir: string): string => `dormouse-${createHash('sha256').update(workDir).digest('hex').slice(0, 8)}`

export const noCgroups: CgroupsAnswer = { version: 'none', controllers: [], reason: 'no VM of this driver has processes' }

/** For drivers without layers: there is nothing to consolidate, and nothing to sweep; a capture is its device state. */
export const noMemory: LayeredMemory = {
  assertThere: async () => undefined,
  consolidate: () => Promise.reject(new AppError('not_supported', 'This hypervisor has no memory layers')),
  compress: () => Promise.reject(new AppError('not_supported', 'This hypervisor has no memory that could be compressed')),
  release: async () => 0,
  sweepBases: async () => undefined,
  verify: async ({ dir }) => checkState(dir, await readManifest(dir)),
}

export const nothingKept: HypervisorSet['kept'] = {
  collectBases: async () => ({ names: [], bytes: 0 }),
  collectGoldenBoots: async () => ({ names: [], bytes: 0 }),
  list: async () => [],
  isStale: async () => false,
}

function namesIn(dir: string): string[] {
  try {
    return readdirSync(dir)
  } catch {
    return []
  }
}
