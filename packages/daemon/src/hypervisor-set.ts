/** The one place that names concrete drivers: for the daemon, and for the doctor who probes them without one. */
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { AppError } from '@dormouse/api/errors.ts'
import type { Assets } from './config/assets.ts'
import type { Config } from './config/config.ts'
import { GuestClient } from './guest/guest-client.ts'
import { FakeHypervisor } from './hypervisors/fake/fake.ts'
import type { BaseRef, Hypervisor } from './hypervisors/hypervisor.ts'
import { createQemuDrivers, dropStaleGoldenBoots } from './hypervisors/qemu/qemu.ts'
import type { Logger } from './log.ts'
import { checkState, readManifest } from './memory/capture-files.ts'
import { type LayeredMemory, Memory } from './memory/memory.ts'
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
}

export interface HypervisorSet {
  readonly drivers: readonly Hypervisor[]
  readonly memory: LayeredMemory
  /** Removes what a daemon left that died while it made a golden boot. Only for the daemon that holds the data directory: it ends what runs. */
  recover(): Promise<void>
}

/** The drivers of this configuration. What they hold open goes on the stack. Touches nothing of a daemon that runs. */
export function createHypervisors({ config, log, paths, assets, isRoot, stack, workDir, isNeeded }: DriverUses): HypervisorSet {
  if (config.hypervisor === 'fake') return { drivers: [new FakeHypervisor()], memory: noMemory, recover: async () => undefined }
  const { goldenDir, basesDir } = paths
  const memory = stack.use(new Memory({ goldenDir, basesDir, shimPath: assets.shim, log, isNeeded }))
  const goldenUid = config.instances.uidBase + config.instances.uidCount
  const drivers = createQemuDrivers({
    memory,
    log,
    shimPath: assets.shim,
    networkHelperPath: assets.networkHelper,
    allowHostAccess: config.network.allowHostAccess,
    kernelPath: assets.kernel,
    initrdPath: assets.initrd,
    workDir,
    probeFile: paths.kvmProbe,
    goldenBoots: config.golden.enabled,
    awaitParked: async (stream, step) => {
      await using guest = await GuestClient.connect(stream, step)
      if (guest.hello.phase !== 'parked')
        throw new AppError('internal_error', `The guest of a golden boot is ${guest.hello.phase}, not parked`)
    },
    ...(isRoot ? { goldenUser: { uid: goldenUid, gid: goldenUid } } : {}),
  })
  return {
    drivers,
    memory,
    recover: async () => {
      await memory.sweepGoldenBoots(() => false)
      const [first] = drivers
      for (const name of namesIn(workDir)) await first?.sweep(join(workDir, name))
      // It has to ask the host first, which takes longer than a start of the daemon may.
      void dropStaleGoldenBoots(drivers, { memory, log })
    },
  }
}

/** For drivers without layers: there is nothing to consolidate, and nothing to sweep; a capture is its device state. */
export const noMemory: LayeredMemory = {
  assertThere: async () => undefined,
  consolidate: () => Promise.reject(new AppError('not_supported', 'This hypervisor has no memory layers')),
  compress: () => Promise.reject(new AppError('not_supported', 'This hypervisor has no memory that could be compressed')),
  sweepBases: async () => undefined,
  verify: async ({ dir }) => checkState(dir, await readManifest(dir)),
}

function namesIn(dir: string): string[] {
  try {
    return readdirSync(dir)
  } catch {
    return []
  }
}
