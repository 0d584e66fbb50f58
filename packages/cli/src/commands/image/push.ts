import { text } from 'node:stream/consumers'
import { setTimeout as delay } from 'node:timers/promises'
import type { Push } from '@dormouse/api/images.ts'
import type { Command } from 'commander'
import { connect, type Daemon, type HostOption } from '../../daemon.ts'
import { Failure, usageFailure } from '../../failure.ts'
import { humanBytes } from '../../output/format.ts'
import { print, printJsonLine } from '../../output/print.ts'
import { showProgress } from '../../output/progress.ts'

interface Options extends HostOption {
  readonly insecure?: true
  readonly username?: string
  readonly passwordStdin?: true
  readonly detach?: true
  readonly quiet?: true
  readonly json?: true
}

export function define(command: Command): void {
  command
    .argument('<image>', 'name, tag or digest of an image that is ready')
    .argument('[target]', 'where to, such as ghcr.io/owner/name:tag; the image’s own name when left out')
    .option('--insecure', 'plain HTTP; loopback addresses are spoken to so in any case')
    .option('-u, --username <name>', 'for the registry, this once; needs --password-stdin')
    .option('--password-stdin', 'read the password from standard input')
    .option('-d, --detach', 'come back at once; the daemon goes on')
    .option('-q, --quiet', 'no progress')
    .option('--json', 'for programs: one object a line, the push at each step')
    .addHelpText('after', '\nWhat the registry has already is not sent again. Ctrl-C ends the waiting, not the push.')
    .action((image: string, target: string | undefined) => push(image, target, command.optsWithGlobals()))
}

async function push(image: string, target: string | undefined, options: Options): Promise<void> {
  if ((options.username === undefined) !== (options.passwordStdin === undefined))
    throw usageFailure('--username and --password-stdin go together')
  const credentials =
    options.username === undefined ? undefined : { username: options.username, password: (await text(process.stdin)).replace(/\r?\n$/, '') }
  const daemon = connect(options)
  const begun = await daemon.call('createPush', {
    body: {
      image,
      target: target ?? image,
      ...(options.insecure && { insecure: true }),
      ...(credentials !== undefined && { credentials }),
    },
  })
  const over = options.detach ? begun : await follow(daemon, begun, options)
  if (options.json) printJsonLine(over)
  else print(options.detach ? over.id : `${over.target}@${over.digest}`)
}

const FIRST_LOOK_MS = 100
const LOOK_EVERY_MS = 2000

/** Until the push is over; throws what it failed with. */
async function follow(daemon: Daemon, begun: Push, { quiet, json }: Options): Promise<Push> {
  using progress = quiet || json ? undefined : showProgress(begun.target)
  let push = begun
  for (let waitMs = FIRST_LOOK_MS; isUnderWay(push); waitMs = Math.min(waitMs * 1.5, LOOK_EVERY_MS)) {
    progress?.update({ step: push.status })
    await delay(waitMs)
    const before = push.status
    push = await daemon.call('getPush', { params: { id: push.id } })
    if (json && push.status !== before && isUnderWay(push)) printJsonLine(push)
  }
  if (push.status === 'failed') throw new Failure(`${push.target} could not be pushed: ${push.error ?? 'the daemon does not say why'}`)
  progress?.finish(`${push.target}: pushed${push.bytes === undefined ? '' : ` (${humanBytes(push.bytes)})`}`)
  return push
}

const isUnderWay = ({ status }: Push): boolean => status === 'queued' || status === 'pushing'
