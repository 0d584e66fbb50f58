import type { PathInfo } from '@dormouse/api/instances.ts'
import type { Command } from 'commander'
import { connect, type HostOption } from '../daemon.ts'
import { EXIT, Failure } from '../failure.ts'
import { humanBytes, modeText } from '../output/format.ts'
import { print, printJson } from '../output/print.ts'
import { styleOf } from '../output/style.ts'
import { renderFacts } from '../output/table.ts'

export function define(command: Command): void {
  command
    .argument('<name>', 'name, id or the beginning of an id')
    .argument('<path>', 'path inside the guest')
    .option('-L, --follow-links', 'look at what a link points to')
    .option('--json', 'for programs')
    .addHelpText('after', `\nEnds with ${EXIT.notFound} when nothing is there.`)
    .action((name: string, path: string) => stat(name, path, command.optsWithGlobals()))
}

async function stat(name: string, path: string, options: HostOption & { followLinks?: true; json?: true }): Promise<void> {
  const info = await connect(options).call('statInstancePath', {
    params: { id: name },
    query: { path, ...(options.followLinks && { follow_links: true }) },
  })
  if (options.json) printJson(info)
  if (!info.exists) {
    if (options.json) process.exitCode = EXIT.notFound
    else if (info.error) throw new Failure(`${path} in ${name} could not be looked at: ${info.error}`)
    else throw new Failure(`There is no ${path} in ${name}`, { exitCode: EXIT.notFound, code: 'path_not_found' })
    return
  }
  if (!options.json) print(renderFacts(facts(path, info), styleOf(process.stdout)))
}

function facts(path: string, info: PathInfo): [string, string | undefined][] {
  const kind = info.is_symlink ? 'link' : info.is_dir ? 'directory' : info.is_file ? 'file' : 'other'
  const mode = info.mode === undefined ? undefined : `${(info.mode & 0o7777).toString(8).padStart(4, '0')}  ${modeText(info.mode, kind)}`
  const size = info.size === undefined ? undefined : info.size < 1024 ? `${info.size}B` : `${humanBytes(info.size)} (${info.size} bytes)`
  return [
    ['Path', path],
    ['Kind', kind],
    ['Mode', mode],
    ['Size', size],
    ['Target', info.link_target || undefined],
  ]
}
