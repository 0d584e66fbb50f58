import { text } from 'node:stream/consumers'
import type { Command } from 'commander'
import { connect, type HostOption } from '../../daemon.ts'
import { usageFailure } from '../../failure.ts'
import { pullImage } from '../../image-pull.ts'
import { print, printJsonLine } from '../../output/print.ts'
import { collect, parseTags } from '../../parse/values.ts'

interface Options extends HostOption {
  readonly platform?: string
  readonly tag?: string[]
  readonly username?: string
  readonly passwordStdin?: true
  readonly quiet?: true
  readonly json?: true
}

export function define(command: Command): void {
  command
    .argument('<image>', 'such as alpine, ghcr.io/owner/name:tag, name@sha256:…')
    .option('--platform <os/arch>', 'such as linux/amd64; the host’s own when left out')
    .option('--tag <key=value>', 'a tag of your own; may be repeated', collect)
    .option('-u, --username <name>', 'for the registry, this once; needs --password-stdin')
    .option('--password-stdin', 'read the password from standard input')
    .option('-q, --quiet', 'no progress')
    .option('--json', 'for programs: one object a line, each step and the image last')
    .action((image: string) => pull(image, command.optsWithGlobals()))
}

async function pull(name: string, options: Options): Promise<void> {
  if ((options.username === undefined) !== (options.passwordStdin === undefined))
    throw usageFailure('--username and --password-stdin go together')
  const tags = parseTags(options.tag ?? [])
  const credentials =
    options.username === undefined ? undefined : { username: options.username, password: (await text(process.stdin)).replace(/\r?\n$/, '') }
  const image = await pullImage(connect(options), name, {
    ...(options.platform !== undefined && { platform: options.platform }),
    ...(tags !== undefined && { tags }),
    ...(credentials !== undefined && { credentials }),
    ...(options.json && { onProgress: printJsonLine }),
    ...(options.quiet && { quiet: true }),
  })
  if (options.json) printJsonLine(image)
  else print(image.name)
}
