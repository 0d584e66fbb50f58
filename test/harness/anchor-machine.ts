import type { DaemonProcess } from './daemon-process.ts'
import type { RawBootOptions } from './raw-cold-boot.ts'

/** What a plain QEMU must have in common with this daemon's VMs to be compared with them. Of its default hypervisor, unless another is named. */
export async function anchorMachineOf(
  { client }: Pick<DaemonProcess, 'client'>,
  hypervisor?: string,
): Promise<Required<Pick<RawBootOptions, 'board' | 'acceleration'>>> {
  const { default_runtime, runtimes } = await client.get<{
    default_runtime: { name: string }
    runtimes: { name: string; acceleration?: 'kvm' | 'tcg' }[]
  }>('/capabilities')
  const name = hypervisor ?? default_runtime.name
  return {
    board: name === 'qemu-microvm' ? 'microvm' : 'q35',
    acceleration: runtimes.find((one) => one.name === name)?.acceleration ?? 'tcg',
  }
}
