import type { Command } from 'commander'
import { connect, type HostOption } from '../daemon.ts'
import { Failure } from '../failure.ts'
import { print, printJson } from '../output/print.ts'
import { VERSION } from '../version.ts'

export function define(command: Command): void {
  command
    .option('--client', 'the CLI alone, without asking the daemon')
    .option('--json', 'for programs')
    .action(() => show(command.optsWithGlobals()))
}

// A daemon that hangs must not hold up the answer to a question about the CLI.
const PATIENCE_MS = 2000

async function show(options: HostOption & { client?: true; json?: true }): Promise<void> {
  const daemon = options.client ? undefined : await daemonVersion(options)
  if (options.json) return printJson({ client: { version: VERSION, node: process.versions.node }, ...(daemon !== undefined && { daemon }) })
  print(`dormouse ${VERSION}`)
  if (daemon === undefined) return
  if ('error' in daemon) print(`daemon   ${daemon.error}`)
  else print(`daemon   ${daemon.version} (API ${daemon.api_version})`)
}

async function daemonVersion(options: HostOption): Promise<{ version: string; api_version: string } | { error: string }> {
  try {
    const { server } = await connect(options).call('getCapabilities', { signal: AbortSignal.timeout(PATIENCE_MS) })
    return server
  } catch (error) {
    if (error instanceof Failure) return { error: error.message }
    return { error: error instanceof Error ? error.message : String(error) }
  }
}
