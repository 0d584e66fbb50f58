/** The one place that names concrete drivers: for the daemon, and for the doctor who probes them without one. */
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { AppError } from '@dormouse/api/errors.ts'
import type { Assets } from './config/assets.ts'
import type { Config } from './config/config.ts'
import { GuestClient } from './guest/guest-client.ts'
import { FakeHypervisor } from './hypervisors/fake/fake.ts'
import type { Hypervisor } from './hypervisors/hypervisor.ts'
import { createQemuDrivers } from './hypervisors/qemu/qemu.ts'
import type { Logger } from './log.ts'
import { Memory } from './memory/memory.ts'
import type { Paths } from './paths.ts'

export interface DriverUses {
  readonly config: Config
  readonly log: Logger
  readonly paths: Paths
  readonly assets: Assets
  readonly isRoot: boolean
  readonly stack: AsyncDisposableStack
}

/** The drivers of this configuration. What they hold open goes on the stack. */
export async function createHypervisors({ config, log, paths, assets, isRoot, stack }: DriverUses): Promise<Hypervisor[]> {
  if (config.hypervisor === 'fake') return [new FakeHypervisor()]
  const memory = stack.use(new Memory({ dir: paths.goldenDir, shimPath: assets.shim, log }))
  // What a daemon left that died while it made one.
  await memory.sweep(() => false)
  const goldenUid = config.instances.uidBase + config.instances.uidCount
  const drivers = createQemuDrivers({
    memory,
    log,
    shimPath: assets.shim,
    networkHelperPath: assets.networkHelper,
    kernelPath: assets.kernel,
    initrdPath: assets.initrd,
    workDir: paths.goldenRunDir,
    probeFile: paths.kvmProbe,
    goldenBoots: config.golden.enabled,
    awaitParked: async (stream, step) => {
      await using guest = await GuestClient.connect(stream, step)
      if (guest.hello.phase !== 'parked')
        throw new AppError('internal_error', `The guest of a golden boot is ${guest.hello.phase}, not parked`)
    },
    ...(isRoot ? { goldenUser: { uid: goldenUid, gid: goldenUid } } : {}),
  })
  const [first] = drivers
  for (const name of namesIn(paths.goldenRunDir)) await first?.sweep(join(paths.goldenRunDir, name))
  return drivers
}

function namesIn(dir: string): string[] {
  try {
    return readdirSync(dir)
  } catch {
    return []
  }
}
