/**
 * Devices of the host, each behind a root port of its own, as on a real board: drivers of GPUs look for one. They are there before the
 * firmware runs, which gives their large windows a place.
 */
import { AppError } from '@dormouse/api/errors.ts'
import type { HostDeviceSpec } from '../vm-spec.ts'
import type { Board } from './boards.ts'

/** They come from rows of the daemon's own; what else got into one must not become an option of QEMU's. */
const ADDRESS = /^[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]$/
const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/

/** 0x10 to 0x1e: 0x1f is the board's own. */
const PORTS = 15

export function hostDeviceArguments(board: Board, devices: readonly HostDeviceSpec[]): string[] {
  if (devices.length === 0) return []
  const { portPlace } = board
  if (portPlace === undefined || devices.length > PORTS) {
    throw new AppError(
      'not_supported',
      portPlace === undefined
        ? `The hypervisor ${board.hypervisor} takes no devices of the host`
        : `The hypervisor ${board.hypervisor} takes at most ${PORTS} devices of the host`,
    )
  }
  return [
    ...identityOf(devices),
    ...devices.flatMap((device, index) => [
      // A guest that could throw one out would have it out of a VM that its record says has it.
      ...['-device', `pcie-root-port,id=port${index},${portPlace(index)},chassis=${index + 1},hotplug=off`],
      ...['-device', `vfio-pci,id=device${index},bus=port${index},${sourceOf(device)}`],
    ]),
  ]
}

/** NVIDIA's manager of parts of GPUs wants to know whose they are by the VM's UUID. */
function identityOf(devices: readonly HostDeviceSpec[]): string[] {
  const part = devices.find((device) => device.kind === 'mdev')
  return part === undefined ? [] : ['-uuid', part.uuid]
}

function sourceOf(device: HostDeviceSpec): string {
  const isSound = device.kind === 'pci' ? ADDRESS.test(device.address) : UUID.test(device.uuid)
  if (!isSound) throw new AppError('internal_error', `${JSON.stringify(device)} names no device`)
  return device.kind === 'pci' ? `host=${device.address}` : `sysfsdev=/sys/bus/mdev/devices/${device.uuid}`
}
