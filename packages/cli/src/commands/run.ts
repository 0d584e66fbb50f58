import type { Command } from 'commander'
import { connect, type HostOption } from '../daemon.ts'
import { usageFailure } from '../failure.ts'
import { ensureImage, type PullPolicy } from '../image-pull.ts'
import { becomeRunning } from '../instance-life.ts'
import { print, printJson, remark } from '../output/print.ts'
import { addEgressOptions } from '../parse/egress.ts'
import { addHealthOptions } from '../parse/health.ts'
import { addRestartOptions } from '../parse/restart.ts'
import { collect, parseChoice } from '../parse/values.ts'
import { type CreateOptions, createInstance, requestOf } from '../run/create-instance.ts'
import { runInForeground } from '../run/foreground.ts'
import { runInteractively } from '../run/interactive.ts'
import { Interrupts } from '../run/interrupts.ts'

export interface RunOptions extends HostOption, CreateOptions {
  readonly detach?: true
  readonly interactive?: true
  readonly tty?: true
  readonly rm?: true
  readonly pull: string
  readonly platform?: string
  readonly quiet?: true
  readonly json?: true
}

export function define(command: Command): void {
  command
    .usage('[options] <image> [command] [args...]')
    .argument('<image>', 'such as alpine, ghcr.io/owner/name:tag, name@sha256:…')
    .argument('[command...]', 'in place of the image’s own command')
    .passThroughOptions()
    .option('-d, --detach', 'do not stay: print the name once it runs')
    .option('-i, --interactive', 'send standard input to the command')
    .option('-t, --tty', 'give the command a terminal')
    .option('--rm', 'delete the instance when it is over')
    .option('--name <name>', 'made up when left out')
    .option('-e, --env <NAME=value>', 'set a variable; may be repeated', collect)
    .option('--env-file <file>', 'set the variables of a file', collect)
    .option('-p, --publish <[[ip:]host:]guest[/udp]>', 'publish a port of the guest on the host; may be repeated', collect)
    .option('-v, --volume <volume:path[:ro][:overlay=size]>', 'mount a volume; may be repeated', collect)
    .option('--device <name>', 'a registered device of the host, by name or id; may be repeated', collect)
    .option('--gpu-profile <profile>', 'a part of a GPU of the host, such as L40S-1Q')
    .option('--bandwidth-down <rate>', 'how fast its network may be towards it, such as 10Mbps or 2MB/s')
    .option('--bandwidth-up <rate>', 'and away from it')
    .option('-m, --memory <size>', 'such as 512m (1GB when left out)')
    .option('--cpus <count>', 'processors (2 when left out)')
    .option('--overlay-size <size>', 'writable disk (10GB when left out); takes space as it fills')
    .option('--hotplug-memory <size>', 'more memory, which can be changed while it runs; in blocks of 128MB')
    .option('--disk-io <rate>', 'what its disks may move together, such as 100MB/s (its processors’ share when left out)')
    .option('--entrypoint <program>', 'in place of the image’s own, with its command')
    .option('--hypervisor <name>', 'qemu, qemu-microvm; the daemon’s own choice when left out')
    .option('--tag <key=value>', 'a tag of your own; may be repeated', collect)
    .option('--ttl <duration>', 'delete it after so long, such as 2h')
    .option('--auto-standby <duration>', 'put it to sleep once no one has been connected to it for so long, such as 10m')
    .option('--no-network', 'without a network')
    .option('--skip-guest-agent', 'let no one enter the guest: no exec, cp or stat')
    .option('--fresh-boot', 'boot from the beginning at every start: slower, and no secret of the kernel is shared')
    .option('--platform <os/arch>', 'such as linux/amd64; the host’s own when left out')
    .option('--pull <when>', 'missing, always or never', 'missing')
    .option('-q, --quiet', 'no progress and no remarks')
    .option('--json', 'for programs: the instance, with -d')
    .addHelpText('after', HELP)
    .action((image: string, argv: string[]) => run(image, argv, command.optsWithGlobals()))
  addEgressOptions(command)
  addRestartOptions(command)
  addHealthOptions(command)
}

const HELP = `
Without -d it shows what the workload writes and ends with its exit code (125: it could not be run). Ctrl-C stops it, a second
Ctrl-C kills it.
With -it the instance idles and the command runs on your terminal; when it is over, the instance is stopped. It needs /bin/sh in
the image.

  dormouse run -it --rm alpine
  dormouse run -d --name web -p 8080:80 nginx`

const PULL_POLICIES = ['missing', 'always', 'never'] as const satisfies readonly PullPolicy[]

async function run(name: string, argv: readonly string[], options: RunOptions): Promise<void> {
  const isInteractive = options.interactive === true || options.tty === true
  if (options.detach && options.rm)
    throw usageFailure('--rm needs someone who stays to delete it: leave out -d', 'Or give it a time to live: --ttl 2h')
  if (options.json && !options.detach) throw usageFailure('--json needs -d: in the foreground, standard output is the workload’s')
  if (options.restart !== undefined && !options.detach)
    throw usageFailure('--restart needs -d: in the foreground, run ends with its workload')
  if (isInteractive && options.skipGuestAgent)
    throw usageFailure('-i and -t run the command by an exec, which --skip-guest-agent rules out: leave out one of them')
  const policy = parseChoice(options.pull, PULL_POLICIES, 'pull policy')
  const request = await requestOf(name, argv, options, { idle: isInteractive })
  const daemon = connect(options)
  const image = await ensureImage(daemon, name, policy, {
    ...(options.platform !== undefined && { platform: options.platform }),
    ...(options.quiet && { quiet: true }),
  })

  using interrupts = new Interrupts()
  const instance = await createInstance(daemon, options.name, request)
  if (options.name === undefined && !options.detach && !options.quiet) remark(`Instance ${instance.name}`)
  if (options.detach) {
    const running = await becomeRunning(daemon, instance)
    if (options.json) printJson(running)
    else print(running.name)
  } else if (isInteractive) await runInteractively(daemon, instance, image, argv, options, interrupts)
  else await runInForeground(daemon, instance, options, interrupts)
}
