/** The guest of an instance as a domain of libvirt: the same kernel, initrd, disks, board and agent, and what libvirt adds by itself. */
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { GuestClient } from '../../packages/daemon/src/guest/guest-client.ts'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { connectTo } from '../../packages/daemon/src/host/unix-socket.ts'
import { kernelCommandLine } from '../../packages/daemon/src/hypervisors/qemu/command-line.ts'
import type { DiskSpec } from '../../packages/daemon/src/hypervisors/vm-spec.ts'
import { INITRD, KERNEL, limited, MAC } from './bare-guest.ts'
import type { BareMachine } from './bare-qemu.ts'
import type { PrivateLibvirt } from './private-libvirt.ts'

export class LibvirtMachine implements AsyncDisposable {
  readonly #libvirt: PrivateLibvirt
  readonly #name: string
  readonly #agent: string
  #guest: GuestClient | undefined

  private constructor(libvirt: PrivateLibvirt, name: string, agent: string) {
    this.#libvirt = libvirt
    this.#name = name
    this.#agent = agent
  }

  /** Defined, and not yet started. `dir` exists; sockets and logs are left in it. */
  static async define(libvirt: PrivateLibvirt, name: string, options: LibvirtOptions): Promise<LibvirtMachine> {
    const file = join(options.dir, `${name}.xml`)
    const agent = join(options.dir, 'agent.sock')
    await writeFile(file, domainOf(name, agent, options))
    await libvirt.virsh('define', file)
    return new LibvirtMachine(libvirt, name, agent)
  }

  /** A boot, or the restore of what `sleep` has saved. Resolves when the agent has greeted. */
  async start(): Promise<GuestClient> {
    await this.#libvirt.virsh('start', this.#name)
    const dial = () => connectTo(this.#agent, limited()).catch(() => undefined)
    const socket = await pollUntil("the domain's agent", dial, limited(), { everyMs: 1, upToMs: 2 })
    this.#guest = await GuestClient.connect(socket, limited())
    return this.#guest
  }

  async sleep(): Promise<void> {
    await this.#guest?.close()
    await this.#libvirt.virsh('managedsave', this.#name)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#guest?.close()
    await this.#libvirt.virsh('destroy', this.#name).catch(() => undefined)
    await this.#libvirt.virsh('undefine', this.#name, '--managed-save').catch(() => undefined)
  }
}

export interface LibvirtOptions extends BareMachine {
  readonly dir: string
  readonly disks: readonly DiskSpec[]
}

function domainOf(name: string, agent: string, { dir, disks, acceleration, memoryMib, tscKhz }: LibvirtOptions): string {
  const disk = ({ role, path, format, readOnly }: DiskSpec, index: number): string =>
    `<disk type='file' device='disk'><driver name='qemu' type='${format}'/><source file='${path}'/>` +
    `<target dev='vd${'abc'[index]}' bus='virtio'/><serial>${role}</serial>${readOnly ? '<readonly/>' : ''}</disk>`
  const channel = (port: string, source: string): string => `<channel ${source}<target type='virtio' name='dormouse.${port}'/></channel>`
  const file = (port: string): string => channel(port, `type='file'><source path='${join(dir, port)}'/>`)
  return `<domain type='${acceleration === 'kvm' ? 'kvm' : 'qemu'}'>
  <name>${name}</name><memory unit='MiB'>${memoryMib}</memory><vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type><kernel>${KERNEL}</kernel><initrd>${INITRD}</initrd>
    <cmdline>${kernelCommandLine({ acceleration, tscKhz })}</cmdline>
  </os>
  <features><acpi/></features>
  ${acceleration === 'kvm' ? "<cpu mode='host-passthrough'/>" : "<cpu mode='maximum'><feature policy='disable' name='erms'/></cpu>"}
  <on_reboot>destroy</on_reboot>
  <devices>
    ${disks.map(disk).join('\n    ')}
    <controller type='usb' model='none'/>
    <interface type='user'><mac address='${MAC}'/><model type='virtio'/></interface>
    ${channel('agent', `type='unix'><source mode='bind' path='${agent}'/>`)}${file('log')}${file('journal')}
    <serial type='file'><source path='${join(dir, 'console.log')}'/></serial>
    <memballoon model='none'/>
  </devices>
</domain>
`
}
