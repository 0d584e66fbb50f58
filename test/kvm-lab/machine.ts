/**
 * The lab's machine: an emulated processor with AMD's virtualization, which Debian's kernel takes for real. Guests of it run on a true
 * /dev/kvm, several times slower than on a true machine.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createWriteStream } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { measureTscKhz } from '../../packages/daemon/src/host/host-facts.ts'
import type { Step } from '../../packages/daemon/src/lib/step.ts'
import { REPOSITORY } from '../harness/daemon-process.ts'
import type { Parts } from './parts.ts'

/** With more, each a thread of a host that is busy, they wait for one another: a guest took twice as long to boot. */
const PROCESSORS = 1
/**
 * An emulated processor that has guests has been seen to miss its timer, and to sleep for ever since there was to be no other until then;
 * QEMU 7.2 changes what it knows of pending interrupts from two threads without a lock as it enters a guest. A timer that comes by itself
 * heals that with the next tick. A machine that hangs all the same for two minutes ends, so that it is told.
 */
const NO_HANGS = 'nohz=off highres=off watchdog_thresh=60 softlockup_panic=1'

export interface Stay {
  readonly parts: Parts
  /** Run in the project's directory there, as root. */
  readonly command: readonly string[]
  readonly memoryMib: number
  /** The machine's console goes here. */
  readonly consoleFile: string
  /** And QEMU's own words here: most are features of the processor that it cannot emulate, and no one needs. */
  readonly errorFile: string
  /** Called with each line that the command writes. */
  readonly onLine: (line: string) => void
}

/** Boots the machine, runs the command, and turns it off: the command's exit code. Throws when the machine ended before it did. */
export async function stayInLab(stay: Stay, step: Step): Promise<number> {
  // It ends with us, whatever ends us. Its input stays open: a port whose other end has closed takes no words.
  const argv = ['--pdeathsig', 'KILL', 'qemu-system-x86_64', ...(await commandLineOf(stay, step))]
  const child = spawn('setpriv', argv, { stdio: ['pipe', 'pipe', 'pipe'] })
  step.signal.addEventListener('abort', () => child.kill('SIGKILL'), { once: true })
  const ended = once(child, 'exit')
  child.stderr.pipe(createWriteStream(stay.errorFile))
  let code: number | undefined
  for await (const line of createInterface({ input: child.stdout })) {
    const end = /^lab: exit (\d+)$/.exec(line)
    if (end === null) stay.onLine(line)
    else code = Number(end[1])
  }
  await ended
  if (code === undefined)
    throw new Error(
      `The lab's machine ended before its command did; its console is in ${stay.consoleFile}, QEMU's own words in ${stay.errorFile}`,
    )
  return code
}

async function commandLineOf({ parts, command, memoryMib, consoleFile }: Stay, step: Step): Promise<string[]> {
  // QEMU looks into neither: commas are doubled in its own lists.
  const told = (name: string, text: string): string[] => ['-fw_cfg', `name=opt/dormouse/${name},string=${text.replaceAll(',', ',,')}`]
  const khz = await measureTscKhz(join(REPOSITORY, 'build/shim/dormouse-shim'), step)
  return [
    ...['-nodefaults', '-no-user-config', '-nographic', '-no-reboot'],
    // An EPYC says what KVM for AMD asks it for.
    ...['-machine', 'q35', '-accel', 'tcg,thread=multi', '-cpu', 'EPYC-v2'],
    ...['-smp', String(PROCESSORS), '-m', String(memoryMib)],
    ...['-kernel', parts.kernel, '-initrd', parts.initrd],
    ...['-append', `console=ttyS0 panic=-1 quiet ${NO_HANGS} no_timer_check tsc_early_khz=${khz}`],
    ...['-serial', `file:${consoleFile}`],
    ...parts.disks.flatMap((path, index) => [
      ...['-drive', `file=${path},format=raw,if=none,id=disk${index},readonly=on`],
      ...['-device', `virtio-blk-pci,drive=disk${index}`],
    ]),
    ...['-device', 'virtio-rng-pci'],
    ...[
      '-device',
      'virtio-serial-pci,max_ports=2',
      '-chardev',
      'stdio,id=report,signal=off',
      '-device',
      'virtserialport,chardev=report,nr=1',
    ],
    ...told('command', command.join('\n')),
  ]
}
