import { readHostFacts } from '../../host/host-facts.ts'
import type { GoldenShape } from '../../memory/memory.ts'
import { cpuModel, kernelCommandLine, type Machine } from './command-line.ts'
import type { HostAnswers } from './qemu-host.ts'

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
      // To a whole MHz: two measurements of one processor never agree to the last digit.
      append: kernelCommandLine({ acceleration, tscKhz: Math.round(machine.tscKhz / 1000) * 1000 }),
    },
  }
}
