import { readHostFacts } from '../../host/host-facts.ts'
import type { GoldenShape } from '../../memory/memory.ts'
import { cpuModel, kernelCommandLine, type Machine } from './command-line.ts'
import { DIMM_ROOM_MIB, DIMM_SLOTS } from './dimms.ts'
import type { HostAnswers } from './qemu-host.ts'

/** Room for memory that comes later: part of what the board tells its guest. */
const HOTPLUG = `${DIMM_SLOTS} slots, ${DIMM_ROOM_MIB} MiB`

/** All that a state and a memory must find again when they are woken. */
export function shapeOf(machine: Machine, host: Pick<HostAnswers, 'version' | 'kernelHash' | 'initrdHash'>): GoldenShape {
  const { kernel, cpuModel: cpu } = readHostFacts()
  const { board, acceleration } = machine
  return {
    memoryBytes: machine.memoryMib * 2 ** 20,
    facts: {
      vmm: host.version,
      board: board.machine,
      machine: board.machineOptions.join(','),
      devices: JSON.stringify([board.devices, board.place(0)]),
      acceleration,
      cpu: acceleration === 'kvm' ? `${cpuModel(acceleration)} ${cpu} on ${kernel}` : cpuModel(acceleration),
      vcpus: machine.vcpus,
      diskSlots: board.diskSlots,
      kernel: host.kernelHash,
      initrd: host.initrdHash,
      ...(machine.hotplug ? { hotplug: HOTPLUG } : {}),
      // To a whole MHz: two measurements of one processor never agree to the last digit.
      append: kernelCommandLine({ ...machine, tscKhz: Math.round(machine.tscKhz / 1000) * 1000 }),
      ...(machine.hasTap ? { network: 'tap' } : {}),
      ...(machine.vhost ? { vhost: 1 } : {}),
    },
  }
}

/**
 * What a machine must be like to wake from a capture of another: as for a golden boot, but for what is in the guest's memory by then
 * (initrd, kernel arguments). The kernel counts because its modules lie on a disk that is not captured.
 */
export function captureFactsOf(
  machine: Machine,
  host: Pick<HostAnswers, 'version' | 'kernelHash'>,
  network: 'user' | 'tap' | 'none',
): Readonly<Record<string, string | number>> {
  const { initrd: _initrd, append: _append, ...facts } = shapeOf(machine, { ...host, initrdHash: '' }).facts
  return { ...facts, network, ...(machine.acceleration === 'kvm' ? {} : { tscMhz: Math.round(machine.tscKhz / 1000) }) }
}

/** In words, why a capture cannot be woken here; undefined when it can. */
export function unfitness(
  captured: Readonly<Record<string, string | number>>,
  here: Readonly<Record<string, string | number>>,
): string | undefined {
  const differing = Object.keys({ ...captured, ...here }).filter((name) => !isSame(name, captured[name], here[name]))
  const [first] = differing
  if (first === undefined) return undefined
  return WORDS[first]?.(captured[first], here[first]) ?? `the machine has changed since then (${differing.join(', ')})`
}

/** Of a clock between two whole MHz, one measurement is rounded up and the next down. */
const isSame = (name: string, then: Value, now: Value): boolean =>
  name === 'tscMhz' && typeof then === 'number' && typeof now === 'number'
    ? Math.abs(then - now) <= 1
    : then === now || canDoWithout(name, now)

/** All that a card offers whose frames the kernel carries, one without that offers too; and not the other way round. */
const canDoWithout = (name: string, now: Value): boolean => name === 'vhost' && now === undefined

type Value = string | number | undefined
const WORDS: Readonly<Record<string, (then: Value, now: Value) => string>> = {
  vmm: (then, now) => `it was taken by QEMU ${then}, this is QEMU ${now}`,
  kernel: () => 'it was taken with another guest kernel than the one that is installed',
  acceleration: (then, now) => `it was taken under ${String(then).toUpperCase()}, guests run under ${String(now).toUpperCase()} here`,
  cpu: (then, now) => `it was taken on another processor (${then}, not ${now})`,
  tscMhz: (then, now) => `it was taken on a processor that counts ${then} MHz, this one counts ${now}`,
  board: (then, now) => `it was taken on the board ${then}, not ${now}`,
  vcpus: (then, now) => `it had ${then} processors, the instance has ${now}`,
  hotplug: () => 'one of the two has room for memory that is added, and the other has not',
  vhost: () => "its network was carried by QEMU, and the host's kernel would carry the instance's",
  network: (then, now) => `its network was "${then}", the instance's is "${now}"`,
}
