import { readHostFacts } from '../../host/host-facts.ts'
import type { GoldenShape } from '../../memory/memory.ts'
import type { KvmAnswers } from '../kvm-host.ts'
import { kernelCommandLine, type Machine, SLOTS } from './machine.ts'

type Facts = Readonly<Record<string, string | number>>

/** All that a state and a memory must find again when they are woken. */
export function shapeOf(machine: Machine, host: Pick<KvmAnswers, 'binary' | 'kernelHash' | 'initrdHash'>): GoldenShape {
  const facts = { ...captureFactsOf(machine, host), initrd: host.initrdHash, append: kernelCommandLine(SLOTS) }
  return { memoryBytes: machine.memoryMib * 2 ** 20, facts }
}

/** What a machine must be like to wake from a capture of another. The kernel counts because its modules lie on a disk that is not captured. */
export function captureFactsOf(machine: Machine, host: Pick<KvmAnswers, 'binary' | 'kernelHash'>): Facts {
  const { kernel, cpuModel: cpu } = readHostFacts()
  return {
    vmm: `Firecracker ${host.binary.version}`,
    cpu: `${cpu} on ${kernel}`,
    vcpus: machine.vcpus,
    slots: SLOTS.map(({ name }) => name).join(','),
    kernel: host.kernelHash,
    ...(machine.hasTap ? { network: 'tap' } : {}),
  }
}

/** In words, why a capture cannot be woken here; undefined when it can. */
export function unfitness(captured: Facts, here: Facts): string | undefined {
  const differing = Object.keys({ ...captured, ...here }).filter((name) => captured[name] !== here[name])
  const [first] = differing
  if (first === undefined) return undefined
  return WORDS[first]?.(captured[first], here[first]) ?? `the machine has changed since then (${differing.join(', ')})`
}

type Value = string | number | undefined
const WORDS: Readonly<Record<string, (then: Value, now: Value) => string>> = {
  vmm: (then, now) => `it was taken by ${then}, this is ${now}`,
  kernel: () => 'it was taken with another guest kernel than the one that is installed',
  cpu: (then, now) => `it was taken on another processor (${then}, not ${now})`,
  network: (then, now) => `its network was ${then ?? 'none'}, the instance's is ${now ?? 'none'}`,
  vcpus: (then, now) => `it had ${then} processors, the instance has ${now}`,
}
