/**
 * Memory beyond what a VM began with: DIMMs, each over an empty file of its own that is mapped privately, so that nothing stands below it
 * but zeros. The guest's kernel takes one into use as memory that can be given up again (`memhp_default_state`), and out of use when it is
 * asked to; no agent has to.
 *
 *     bytes that are wanted:  the oldest DIMMs that fit stay ─► one for what is missing ─► the others are asked back
 *
 * A running QEMU may have been taken over, so of what it says only small numbers are believed.
 */
import { AppError } from '@dormouse/api/errors.ts'
import { formatSize } from '@dormouse/api/units.ts'
import type { Step } from '../../lib/step.ts'
import type { Qmp } from './qmp.ts'

export interface Dimm {
  readonly slot: number
  /** Where it lies in the guest's address space. */
  readonly address: number
  readonly bytes: number
}

/** One of a VM that runs, and its file's number among QEMU's descriptors. */
export interface PluggedDimm extends Dimm {
  readonly fd: number
}

export const DIMM_SLOTS = 8
/** Address space beyond the memory that a machine begins with. */
export const DIMM_ROOM_MIB = 32 * 1024
/** Linux gives and takes memory in blocks of this size on x86-64, as long as there are less than 64 GiB. */
const BLOCK_BYTES = 128 << 20

/** Descriptor sets of files that were given to a QEMU that ran already. Below those of disks, which are taken away when no disk uses them. */
const FIRST_SET = 20
/** The descriptors that a QEMU is born with, for DIMMs that it has from the start. */
const FIRST_FD = 90

export const dimmFd = (slot: number): number => FIRST_FD + slot
export const dimmSet = (slot: number): number => FIRST_SET + slot
const memoryName = (slot: number): string => `dimm${slot}-memory`
const deviceName = (slot: number): string => `dimm${slot}`

/** The arguments for a VM that has them from the start. */
export const dimmArguments = (dimms: readonly Dimm[]): string[] =>
  dimms.flatMap(({ slot, address, bytes }) => [
    ...['-object', `memory-backend-file,id=${memoryName(slot)},size=${bytes},mem-path=/proc/self/fd/${dimmFd(slot)},share=off`],
    ...['-device', `pc-dimm,id=${deviceName(slot)},memdev=${memoryName(slot)},slot=${slot},addr=0x${address.toString(16)}`],
  ])

/** Those that the VM has, the oldest first. */
export async function dimmsOf(qmp: Qmp, step: Step): Promise<PluggedDimm[]> {
  const devices = await qmp.execute('query-memory-devices', undefined, step)
  const found: PluggedDimm[] = []
  for (const device of Array.isArray(devices) ? devices : []) {
    const { slot, addr, size } = (device as { data?: { slot?: unknown; addr?: unknown; size?: unknown } }).data ?? {}
    const path = await qmp.execute('qom-get', { path: `/objects/${memoryName(Number(slot))}`, property: 'mem-path' }, step)
    const fd = Number(/^\/proc\/self\/fd\/(\d{1,6})$/.exec(String(path))?.[1])
    found.push({ slot: Number(slot), address: Number(addr), bytes: Number(size), fd })
  }
  assertSane(found)
  return found.sort((a, b) => a.address - b.address)
}

/** What a capture says of them decides a command line: a VM that was taken over has had its word in it. Throws `snapshot_unusable`. */
export function assertSane(dimms: readonly Dimm[]): void {
  const isWhole = (value: number, most: number): boolean => Number.isSafeInteger(value) && value >= 0 && value <= most
  const areSound = dimms.every(
    ({ slot, address, bytes }) =>
      isWhole(slot, DIMM_SLOTS - 1) &&
      isWhole(address, 2 ** 46) &&
      isWhole(bytes, DIMM_ROOM_MIB * 2 ** 20) &&
      bytes > 0 &&
      bytes % BLOCK_BYTES === 0,
  )
  if (areSound && new Set(dimms.map(({ slot }) => slot)).size === dimms.length && bytesOf(dimms) <= DIMM_ROOM_MIB * 2 ** 20) return
  throw new AppError('snapshot_unusable', 'What the VM says of the memory that it was given cannot be right')
}

export const bytesOf = (dimms: readonly Dimm[]): number => dimms.reduce((sum, { bytes }) => sum + bytes, 0)

/** Which stay, how large one more has to be, and which go, the newest first. Pure. */
export function planDimms<D extends Dimm>(
  dimms: readonly D[],
  wanted: number,
): { readonly more: number; readonly gone: readonly D[]; readonly slot: number | undefined } {
  let kept = 0
  let count = 0
  while (count < dimms.length && kept + (dimms[count]?.bytes ?? 0) <= wanted) kept += dimms[count++]?.bytes ?? 0
  const taken = new Set(dimms.map(({ slot }) => slot))
  const slot = Array.from({ length: DIMM_SLOTS }, (_, index) => index).find((index) => !taken.has(index))
  return { more: wanted - kept, gone: dimms.slice(count).reverse(), slot }
}

/** Makes a DIMM of the file that QEMU has as descriptor `fd`, and waits until the guest uses it. When it throws the VM has none of it. */
export async function plug(qmp: Qmp, { slot, bytes, fd }: Omit<PluggedDimm, 'address'>, step: Step): Promise<void> {
  await qmp.execute(
    'object-add',
    { 'qom-type': 'memory-backend-file', id: memoryName(slot), size: bytes, 'mem-path': `/proc/self/fd/${fd}`, share: false },
    step,
  )
  try {
    await qmp.execute('device_add', { driver: 'pc-dimm', id: deviceName(slot), memdev: memoryName(slot), slot }, step)
  } catch (error) {
    await qmp.execute('object-del', { id: memoryName(slot) }, step).catch(() => undefined)
    throw error
  }
  try {
    const { info } = await qmp.event('ACPI_DEVICE_OST', step, ({ info }) => (info as { device?: unknown })?.device === deviceName(slot))
    if ((info as { status?: unknown }).status === 0) return
  } catch (error) {
    if (!step.signal.aborted) throw error
    throw new AppError('timed_out', 'The guest has not taken the memory into use in time', { cause: error })
  }
  await unplug(qmp, slot, step).catch(() => undefined)
  throw new AppError('conflict', 'The guest does not take the memory into use', {
    hint: 'Its kernel says why: dormouse exec NAME dmesg',
  })
}

/** Asks the guest for a DIMM, and waits until it is back. Throws `conflict` when the guest does not give it: then it keeps all of it. */
export async function unplug(qmp: Qmp, slot: number, step: Step): Promise<void> {
  const device = deviceName(slot)
  const isIts = (data: Readonly<Record<string, unknown>>): boolean => data.device === device
  const gone = qmp.event('DEVICE_DELETED', step, isIts).then(() => true)
  const refusals = [
    qmp.event('MEM_UNPLUG_ERROR', step, isIts),
    qmp.event('DEVICE_UNPLUG_GUEST_ERROR', step, isIts),
    // 0 is success, 132 (0x84) says that it is under way: ACPI 6.4, _OST for an ejection request.
    qmp.event('ACPI_DEVICE_OST', step, ({ info }) => {
      const { device: of, status } = (info ?? {}) as { device?: unknown; status?: unknown }
      return of === device && status !== 0 && status !== 132
    }),
  ].map((refusal) => refusal.then(() => false))
  for (const one of [gone, ...refusals]) one.catch(() => undefined)
  await qmp.execute('device_del', { id: device }, step)
  if (!(await Promise.race([gone, ...refusals]))) {
    throw new AppError('conflict', 'The guest needs the memory that it is to give back', { hint: 'End what uses it, or ask for less' })
  }
  await qmp.execute('object-del', { id: memoryName(slot) }, step)
}

export const assertBlocks = (bytes: number): void => {
  if (bytes % BLOCK_BYTES === 0) return
  throw new AppError('invalid_hotplug_size', `hotplug_size must be a multiple of ${formatSize(BLOCK_BYTES)}, not ${formatSize(bytes)}`)
}
