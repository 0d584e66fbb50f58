import type { Command } from 'commander'
import { connect, type HostOption } from '../daemon.ts'
import { environment } from '../environment.ts'
import { type ExecEnd, type ExecRequest, execSession } from '../exec-session.ts'
import { safeText } from '../output/format.ts'
import { printFailure, printJson, remark } from '../output/print.ts'
import { readVariables } from '../parse/environment-variables.ts'
import { collect, parseDurationOption } from '../parse/values.ts'

interface Options extends HostOption {
  readonly interactive?: true
  readonly tty?: true
  readonly env?: string[]
  readonly envFile?: string[]
  readonly cwd?: string
  readonly user?: string
  readonly timeout?: string
  readonly json?: true
}

export function define(command: Command): void {
  command
    .usage('[options] <name> [command] [args...]')
    .argument('<name>', 'name, id or the beginning of an id')
    .argument('[command...]', 'what to run; a shell when left out')
    .passThroughOptions()
    .option('-i, --interactive', 'send standard input')
    .option('-t, --tty', 'give it a terminal')
    .option('-e, --env <NAME=value>', 'set a variable; may be repeated', collect)
    .option('--env-file <file>', 'set the variables of a file', collect)
    .option('-w, --cwd <dir>', 'where it runs; the image’s own working directory when left out')
    .option('-u, --user <user>', 'as whom: name, uid, user:group')
    .option('--timeout <duration>', 'kill it after so long; it then ends with 124')
    .option('--json', 'for programs: {exit_code, stdout, stderr} once it is over')
    .addHelpText(
      'after',
      '\nEnds with the command’s own exit code; 125: it could not be begun, 126: it may not be executed, 127: it is not there.\nWithout a command: a shell, on a terminal if there is one.',
    )
    .action((name: string, argv: string[]) => exec(name, argv, command.optsWithGlobals()))
}

async function exec(name: string, argv: readonly string[], options: Options): Promise<void> {
  const isShell = argv.length === 0
  const env = await readVariables(options.envFile ?? [], options.env ?? [], environment.variable)
  const request: ExecRequest = {
    instance: name,
    command: argv,
    interactive: options.interactive ?? isShell,
    tty: options.tty ?? (isShell && !options.json && process.stdin.isTTY && process.stdout.isTTY),
    ...(env !== undefined && { env }),
    ...(options.cwd !== undefined && { cwd: options.cwd }),
    ...(options.user !== undefined && { user: options.user }),
    ...(options.timeout !== undefined && { timeoutMs: parseDurationOption(options.timeout) }),
  }
  const daemon = connect(options)
  if (options.json) {
    const output = { stdout: [] as Uint8Array[], stderr: [] as Uint8Array[] }
    const end = await execSession(daemon, request, (channel, bytes) => void output[channel].push(bytes))
    printJson({
      exit_code: end.exitCode,
      ...(end.message !== undefined && { message: end.message }),
      stdout: Buffer.concat(output.stdout).toString('utf8'),
      stderr: Buffer.concat(output.stderr).toString('utf8'),
    })
    process.exitCode = end.exitCode
    return
  }
  endAs(await execSession(daemon, request))
}

/** Takes over the command's exit code, and says in words what no one else has: why it did not start, what killed it. */
export function endAs({ exitCode, message = '', wroteErrors }: ExecEnd): void {
  process.exitCode = exitCode
  const couldNotStart = (exitCode === 126 || exitCode === 127) && !wroteErrors
  if (couldNotStart && message !== '') printFailure({ exitCode, code: 'failed', message }, { json: false })
  else if ((exitCode === 124 || exitCode > 128) && message !== '') remark(safeText(message))
}
