/** The daemon's program: `serve` (the default), `doctor`, `token`. Signals and exit codes are decided here and nowhere else. */
import { parseArgs } from 'node:util'
import { AppError } from '@dormouse/api/errors.ts'
import { isScope, SCOPES } from '@dormouse/api/tokens.ts'
import { parseDuration } from '@dormouse/api/units.ts'
import { readConfig } from './config/config.ts'
import { readEnv } from './config/env.ts'

const USAGE = `Usage: dormouse serve | doctor [--json] | token [--subject NAME] [--scope SCOPE]... [--ttl 24h]

serve    runs the daemon; settings are environment variables DORMOUSE_*, see docs/host-setup.md
doctor   says what this host has, what is missing and how to mend it
token    makes a token for the API over TCP, with this host's secret
`

async function main([verb = 'serve', ...args]: readonly string[]): Promise<number> {
  if (args.includes('--help') || args.includes('-h') || verb === '--help' || verb === '-h' || verb === 'help') {
    process.stdout.write(USAGE)
    return 0
  }
  switch (verb) {
    case 'serve':
      return serve(args)
    case 'doctor': {
      const { doctor } = await import('./doctor/doctor.ts')
      return doctor(readConfig(readEnv()), { json: args.includes('--json'), print: (text) => process.stdout.write(text) })
    }
    case 'token':
      return token(args)
    default:
      process.stderr.write(`There is no verb ${verb}.\n\n${USAGE}`)
      return 2
  }
}

/** Runs until a signal. The first SIGTERM or SIGINT ends it in order, the second at once. */
async function serve(args: readonly string[]): Promise<number> {
  if (args.length > 0) {
    process.stderr.write(`serve takes no arguments; settings are environment variables.\n\n${USAGE}`)
    return 2
  }
  const config = readConfig(readEnv())
  const { createLogger } = await import('./log.ts')
  const log = createLogger({ level: config.logLevel })
  const ended = Promise.withResolvers<void>()
  let signals = 0
  const onSignal = (signal: NodeJS.Signals): void => {
    log.info({ signal }, 'signal received')
    if (++signals > 1) process.exit(130)
    ended.resolve()
  }
  process.on('SIGTERM', onSignal)
  process.on('SIGINT', onSignal)
  // Nothing that can be trusted is left after these. It may die at any moment, so it does: the next start mends what this leaves.
  for (const event of ['uncaughtException', 'unhandledRejection'] as const) {
    process.on(event, (error: unknown) => {
      log.fatal({ err: error }, 'a fault in the daemon')
      process.exit(70)
    })
  }
  const { Daemon } = await import('./daemon.ts')
  await using _daemon = await Daemon.start({ config, log })
  await ended.promise
  return 0
}

/** Prints a token made with this host's secret; also while no daemon runs. Nothing is written down of it: it can be revoked by its subject. */
async function token(args: readonly string[]): Promise<number> {
  const { values } = parseArgs({
    args: [...args],
    options: {
      subject: { type: 'string', default: 'operator' },
      scope: { type: 'string', multiple: true },
      ttl: { type: 'string', default: '24h' },
    },
  })
  const ttlMs = parseDuration(values.ttl)
  if (ttlMs === undefined || ttlMs <= 0) throw new AppError('invalid_request', `${values.ttl} is no duration such as 24h`)
  const unknown = values.scope?.find((scope) => scope !== '*' && !isScope(scope))
  if (unknown !== undefined)
    throw new AppError('invalid_request', `There is no scope ${unknown}`, {
      hint: `Scopes: ${SCOPES.join(' ')}, and registry:push:REPOSITORY`,
    })
  const [{ signToken }, { loadOrCreateSecret }, { createLogger }] = await Promise.all([
    import('./http/auth.ts'),
    import('./http/secret.ts'),
    import('./log.ts'),
  ])
  const config = readConfig(readEnv())
  const secret = loadOrCreateSecret(config.jwtSecretFile, createLogger({ level: config.logLevel }))
  const { subject, scope } = values
  const made = await signToken(secret, { subject, ttlMs, ...(scope === undefined ? {} : { scopes: scope }) })
  process.stdout.write(`${made.token}\n`)
  return 0
}

try {
  process.exitCode = await main(process.argv.slice(2))
} catch (error) {
  const { message, hint } =
    error instanceof AppError
      ? error
      : { message: error instanceof Error ? (error.stack ?? error.message) : String(error), hint: undefined }
  process.stderr.write(`dormouse: ${message}${causesOf(error)}${hint === undefined ? '' : `\nhint: ${hint}`}\n`)
  process.exitCode = 1
}
// Once all is closed nothing should hold the process; what does is not worth waiting for.
setTimeout(() => process.exit(), 2000).unref()

function causesOf(error: unknown): string {
  const causes: string[] = []
  for (let cause = error instanceof Error ? error.cause : undefined; cause instanceof Error && causes.length < 5; cause = cause.cause) {
    causes.push(cause.message)
  }
  return causes.map((cause) => `: ${cause}`).join('')
}
