/**
 * A VM that waits to become an instance's, paused, in a run directory of its own and without anyone's ports and logs. Two kinds, by what
 * lies ahead of it: see rehearsed-machine.ts and prepared-machine.ts.
 */
import { rename, rm } from 'node:fs/promises'
import type { Step } from '../../lib/step.ts'
import type { VmHandle } from '../hypervisor.ts'
import { NetworkHelper } from '../network-helper.ts'
import { clearRunDir } from '../run-dir.ts'
import type { Shim } from '../shim.ts'
import type { DiskRole, NicSpec, VmSpec } from '../vm-spec.ts'
import type { Waiting } from './pool.ts'
import type { Qmp } from './qmp.ts'
import { throttle } from './throttle.ts'

/** The cgroup that a VM is in while it waits. */
export interface OwnCgroup {
  /** Takes all that is in it into that of the VM with this run directory. */
  leaveFor(runDir: string): Promise<void>
  /** Repeat is harmless. */
  remove(): Promise<void>
}

export interface WaitingUses {
  /** Of its own, beside its run directory. */
  readonly files: readonly string[]
  /** What of a disk's device holds the disk, as QEMU calls it. */
  readonly blockDevice: (role: DiskRole) => string
  readonly cgroup?: OwnCgroup
}

/** The card of one that waits: without anyone's ports, on no bridge. The kernel chooses the number. */
export const waitingNic = (mac: string, backend: NicSpec['backend']): NicSpec =>
  backend === 'user' ? { mac, backend, ports: [] } : { mac, backend, tap: 'dmwait%d' }

export abstract class WaitingMachine implements Waiting {
  readonly shim: Shim
  readonly handle: VmHandle
  readonly ended: Promise<unknown>
  readonly #uses: WaitingUses

  constructor(shim: Shim, handle: VmHandle, uses: WaitingUses) {
    this.shim = shim
    this.handle = handle
    this.ended = shim.ended
    this.#uses = uses
  }

  /** What is left to do with QEMU, in the run directory of `spec`. Nothing of the guest may run before `ready` has resolved. */
  protected abstract finish(spec: VmSpec, ready: Promise<unknown>, step: Step): Promise<void>

  /** Becomes the VM of `spec`. When it throws it is of no use any more. */
  async become(spec: VmSpec, step: Step): Promise<VmHandle> {
    await clearRunDir(spec.runDir)
    await rename(this.handle.runDir, spec.runDir)
    this.shim.moved(spec.runDir)
    const { app, vmm, journal } = spec.logs
    const { ports = [], bandwidth, egress } = spec.nic?.backend === 'user' ? spec.nic : {}
    const helper = new NetworkHelper(spec.runDir)
    // Another helper answers from then on.
    if (egress !== undefined) await this.shim.giveProxy(egress, step)
    const ready = Promise.all([
      this.shim.claim({ app, vmm, journal }, step),
      ...(ports.length === 0 ? [] : [helper.setPorts(ports, step)]),
      ...(bandwidth === undefined ? [] : [helper.setBandwidth(bandwidth, step)]),
      ...(spec.nic?.backend === 'tap' ? [this.shim.takeTap(spec.nic.tap, step)] : []),
    ])
    const leaving = this.#uses.cgroup?.leaveFor(spec.runDir)
    try {
      await Promise.all([this.finish(spec, ready, step), ready, leaving])
    } finally {
      // What it fails with is known, and whoever ends it must not meet a cgroup that is made behind them.
      await leaving?.catch(() => undefined)
    }
    // A start takes away what is left of them, and this one is not to wait for a disk.
    void this.#removeFiles().catch((error: unknown) => step.log.warn({ err: error }, 'files of a VM that waited could not be removed'))
    return { ...this.handle, runDir: spec.runDir, startedAtMs: Date.now() }
  }

  /** Sent at once: QEMU takes commands in their order. */
  protected async limitDisks({ disks, diskIoBps }: VmSpec, qmp: Qmp, step: Step): Promise<void> {
    if (diskIoBps === undefined) return
    const devices = disks.map(({ role }) => this.#uses.blockDevice(role))
    await throttle(qmp, devices, diskIoBps, step)
  }

  async end(): Promise<void> {
    await this.shim.kill()
    this.shim[Symbol.dispose]()
    await this.#removeFiles()
    await rm(this.shim.runDir, { recursive: true, force: true })
    await this.#uses.cgroup?.remove()
  }

  async #removeFiles(): Promise<void> {
    await Promise.all(this.#uses.files.map((file) => rm(file, { force: true })))
  }
}
