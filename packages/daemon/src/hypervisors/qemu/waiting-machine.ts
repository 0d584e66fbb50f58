/**
 * A VM that waits to become an instance's, paused, in a run directory of its own and without anyone's ports and logs. Two kinds, by what
 * lies ahead of it: see rehearsed-machine.ts and prepared-machine.ts.
 */
import { rename, rm } from 'node:fs/promises'
import type { Step } from '../../lib/step.ts'
import type { VmHandle } from '../hypervisor.ts'
import { NetworkHelper } from '../network-helper.ts'
import type { Shim } from '../shim.ts'
import type { VmSpec } from '../vm-spec.ts'
import { clearRunDir } from './parked-machine.ts'
import type { Waiting } from './pool.ts'

export abstract class WaitingMachine implements Waiting {
  readonly shim: Shim
  readonly handle: VmHandle
  readonly ended: Promise<unknown>
  readonly #files: readonly string[]

  /** `files`: of its own, beside its run directory. */
  constructor(shim: Shim, handle: VmHandle, files: readonly string[]) {
    this.shim = shim
    this.handle = handle
    this.ended = shim.ended
    this.#files = files
  }

  /** What is left to do with QEMU, in the run directory of `spec`. Nothing of the guest may run before `ready` has resolved. */
  protected abstract finish(spec: VmSpec, ready: Promise<unknown>, step: Step): Promise<void>

  /** Becomes the VM of `spec`. When it throws it is of no use any more. */
  async become(spec: VmSpec, step: Step): Promise<VmHandle> {
    await clearRunDir(spec.runDir)
    await rename(this.handle.runDir, spec.runDir)
    this.shim.moved(spec.runDir)
    const { app, vmm, journal } = spec.logs
    const { ports = [], bandwidth } = spec.nic?.backend === 'user' ? spec.nic : {}
    const helper = new NetworkHelper(spec.runDir)
    const ready = Promise.all([
      this.shim.claim({ app, vmm, journal }, step),
      ...(ports.length === 0 ? [] : [helper.setPorts(ports, step)]),
      ...(bandwidth === undefined ? [] : [helper.setBandwidth(bandwidth, step)]),
    ])
    await Promise.all([this.finish(spec, ready, step), ready])
    // A start takes away what is left of them, and this one is not to wait for a disk.
    void this.#removeFiles().catch((error: unknown) => step.log.warn({ err: error }, 'files of a VM that waited could not be removed'))
    return { ...this.handle, runDir: spec.runDir, startedAtMs: Date.now() }
  }

  async end(): Promise<void> {
    await this.shim.kill()
    this.shim[Symbol.dispose]()
    await this.#removeFiles()
    await rm(this.shim.runDir, { recursive: true, force: true })
  }

  async #removeFiles(): Promise<void> {
    await Promise.all(this.#files.map((file) => rm(file, { force: true })))
  }
}
