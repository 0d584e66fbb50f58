import type { Step } from '../../lib/step.ts'
import { diskDevices } from './block-graph.ts'
import type { Qmp } from './qmp.ts'

/** All disks of a VM share one budget. */
const GROUP = 'disks'
/** Seconds' worth that a disk which has been idle may move at once. */
const BURST = 4

/**
 * Gives the disks behind `devices` (as QEMU calls them) one budget of bytes per second together, reads and writes alike; undefined takes
 * it away. It belongs to the devices and not to what is behind them, so that a pivot, and a disk that comes by `qom-set`, change nothing
 * of it. Requests that wait for the budget are let through by a pause.
 */
export async function throttle(qmp: Qmp, devices: readonly string[], bytesPerSecond: number | undefined, step: Step): Promise<void> {
  const bps = bytesPerSecond ?? 0
  // A bucket of so many bytes, which fills at the rate. QEMU takes no size of a bucket for a rate of 0.
  const burst = bps === 0 ? {} : { bps_max: bps * BURST }
  const limits = { bps, bps_rd: 0, bps_wr: 0, iops: 0, iops_rd: 0, iops_wr: 0, ...burst, group: GROUP }
  await Promise.all(devices.map((id) => qmp.execute('block_set_io_throttle', { id, ...limits }, step)))
}

/** The same for every disk that the VM has now. Repeat is harmless. */
export async function throttleAll(qmp: Qmp, bytesPerSecond: number | undefined, step: Step): Promise<void> {
  await throttle(qmp, await diskDevices(qmp, step), bytesPerSecond, step)
}
