import type { Command } from 'commander'
import { type CopyReport, copyOut, copyOutAsTar } from '../copy/copy-out.ts'
import { connect, type HostOption } from '../daemon.ts'
import { usageFailure } from '../failure.ts'
import { humanBytes, safeText } from '../output/format.ts'
import { printJson, remark, warn } from '../output/print.ts'
import { showProgress } from '../output/progress.ts'
import { parseCopyEnd } from '../parse/instance-path.ts'

interface Options extends HostOption {
  readonly followLinks?: true
  readonly archive?: true
  readonly unsafeLinks?: true
  readonly quiet?: true
  readonly json?: true
}

export function define(command: Command): void {
  command
    .argument('<source>', 'NAME:PATH in an instance, or a path of this host')
    .argument('<target>', 'the other of the two; - writes a tar to standard output')
    .option('-L, --follow-links', 'out of an instance: copy what links point to')
    .option('-a, --archive', 'keep owner and group')
    .option('--unsafe-links', 'out of an instance: keep links that lead out of the copy too')
    .option('-q, --quiet', 'no progress and no remarks')
    .option('--json', 'for programs: {files, bytes, skipped}')
    .addHelpText('after', HELP)
    .action((source: string, target: string) => copy(source, target, command.optsWithGlobals()))
}

const HELP = `
Directories are copied with all that is in them: into the target when it is a directory, else as the target. DIR/. copies what is
in the directory. Nothing is ever written outside the target, whatever the guest calls its files.

  dormouse cp web:/etc/nginx ./nginx
  dormouse cp ./site/. web:/usr/share/nginx/html
  dormouse cp web:/var/log - | tar t`

async function copy(sourceText: string, targetText: string, options: Options): Promise<void> {
  const source = parseCopyEnd(sourceText)
  const target = parseCopyEnd(targetText)
  const daemon = connect(options)
  if (source.kind === 'guest' && target.kind === 'stream') {
    if (process.stdout.isTTY) throw usageFailure('A tar is nothing for a terminal', `Write: dormouse cp ${sourceText} - > files.tar`)
    return copyOutAsTar(daemon, source.instance, source.path, options)
  }
  if (source.kind === 'guest' && target.kind === 'host') {
    using progress = progressOf(sourceText, options)
    report(
      await copyOut(daemon, source.instance, source.path, target.path, {
        ...(options.followLinks && { followLinks: true }),
        ...(options.archive && { keepOwner: true }),
        ...(options.unsafeLinks && { keepEveryLink: true }),
        onBytes: (doneBytes) => progress?.update({ step: 'copying', doneBytes }),
      }),
      options,
      'it leads out of the copy; --unsafe-links keeps it, -L copies what it points to',
    )
    return
  }
  if (source.kind === 'host' && target.kind === 'guest') {
    const { copyIn } = await import('../copy/copy-in.ts')
    using progress = progressOf(sourceText, options)
    report(
      await copyIn(daemon, source.path, target.instance, target.path, {
        ...(options.archive && { keepOwner: true }),
        onBytes: (doneBytes) => progress?.update({ step: 'copying', doneBytes }),
      }),
      options,
      'it is neither a file nor a directory of its own',
    )
    return
  }
  if (source.kind === 'guest' && target.kind === 'guest')
    throw usageFailure('Two instances cannot copy to each other', 'Copy to this host first, then from it')
  if (source.kind === 'stream') throw usageFailure('A tar is not taken from standard input', 'Unpack it here and copy the directory')
  throw usageFailure('One of the two must be in an instance', 'Write it as NAME:PATH')
}

const progressOf = (title: string, options: Options) =>
  options.quiet || options.json || !process.stderr.isTTY ? undefined : showProgress(title)

function report(done: CopyReport, options: Options, why: string): void {
  if (options.json) printJson({ files: done.files, bytes: done.bytes, skipped: done.skipped })
  else {
    for (const each of done.skipped) warn(`Left out ${safeText(each)}: ${why}`)
    if (!options.quiet) remark(`${done.files} ${done.files === 1 ? 'file' : 'files'}, ${humanBytes(done.bytes)}`)
  }
}
