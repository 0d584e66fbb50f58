/**
 * The parts of a request that are texts inside a policy: each wrong one has the error code of its policy. They are looked at before
 * anything is refused as not built, and also where the policy is off: what is malformed is malformed.
 */
import { isIP } from 'node:net'
import { compressionOf, wrongLevelOf } from '@dormouse/api/compression.ts'
import { AppError, type ErrorCode } from '@dormouse/api/errors.ts'
import type { AutoStandbyPolicy, HealthCheck, RestartPolicy, SnapshotPolicy } from '@dormouse/api/instances.ts'
import { parseDuration } from '@dormouse/api/units.ts'

export interface Policies {
  readonly snapshot_policy?: SnapshotPolicy
  readonly auto_standby?: AutoStandbyPolicy
  readonly health_check?: HealthCheck
  readonly restart_policy?: RestartPolicy
}

export function checkPolicies({ snapshot_policy, auto_standby, health_check, restart_policy }: Policies): void {
  if (snapshot_policy) checkSnapshotPolicy(snapshot_policy)
  if (auto_standby) checkAutoStandby(auto_standby)
  if (health_check) checkHealthCheck(health_check)
  if (restart_policy) {
    checkDuration('restart_policy.backoff', restart_policy.backoff, 'invalid_restart_policy')
    checkDuration('restart_policy.stable_after', restart_policy.stable_after, 'invalid_restart_policy')
  }
}

function checkSnapshotPolicy({ compression, standby_compression_delay }: SnapshotPolicy): void {
  checkDuration('snapshot_policy.standby_compression_delay', standby_compression_delay, 'invalid_snapshot_policy')
  const wanted = compression === undefined ? 'off' : compressionOf(compression)
  const wrong = wanted === 'off' ? undefined : wrongLevelOf(wanted)
  if (wrong !== undefined) throw new AppError('invalid_snapshot_policy', `\`snapshot_policy.compression.level\` ${wrong}`)
}

function checkAutoStandby({ enabled, idle_timeout, ignore_source_cidrs = [] }: AutoStandbyPolicy): void {
  if (enabled === true && idle_timeout === undefined) {
    throw new AppError('invalid_auto_standby', '`auto_standby.idle_timeout` is missing: say how long it must be idle, such as 10m')
  }
  checkDuration('auto_standby.idle_timeout', idle_timeout, 'invalid_auto_standby', { isAboveZero: true })
  for (const text of ignore_source_cidrs) {
    if (!isCidr(text)) {
      throw new AppError(
        'invalid_auto_standby',
        `\`auto_standby.ignore_source_cidrs\` holds ${JSON.stringify(text)}, but takes networks such as 192.0.2.0/24`,
      )
    }
  }
}

function checkHealthCheck(check: HealthCheck): void {
  const { type = 'none', interval, timeout, start_period } = check
  const code = 'invalid_health_check'
  checkDuration('health_check.interval', interval, code, { isAboveZero: true })
  checkDuration('health_check.timeout', timeout, code, { isAboveZero: true })
  checkDuration('health_check.start_period', start_period, code)
  const path = check.http?.path ?? '/'
  // It goes into a line of a request.
  if (!/^\/[\x21-\x7e]*$/.test(path)) {
    throw new AppError(code, `\`health_check.http.path\` is ${JSON.stringify(path)}, but must begin with / and be written as in a URL`)
  }
  const words = [...(check.exec?.command ?? []), check.exec?.working_dir ?? '/']
  if (words.some((word) => word.includes('\0'))) throw new AppError(code, '`health_check.exec` holds a NUL')
  // execve(2) takes no longer words; all of them together need not be longer than one.
  if (Buffer.byteLength(words.join(' ')) > 131_071) throw new AppError(code, '`health_check.exec.command` is too long')
  if (!words.at(-1)?.startsWith('/')) throw new AppError(code, '`health_check.exec.working_dir` must be an absolute path')
  if (type !== 'none' && check[type] === undefined) throw new AppError(code, `\`health_check.${type}\` is missing: its type is ${type}`)
}

function checkDuration(field: string, text: string | undefined, code: ErrorCode, { isAboveZero = false } = {}): void {
  if (text === undefined) return
  const ms = parseDuration(text)
  if (ms === undefined || ms < 0 || (isAboveZero && ms === 0)) {
    throw new AppError(
      code,
      `\`${field}\` is ${JSON.stringify(text)}, but must be a duration${isAboveZero ? ' above 0' : ''} such as 90s or 5m`,
    )
  }
}

function isCidr(text: string): boolean {
  const [address = '', prefix = '', ...more] = text.split('/')
  const family = isIP(address)
  // A zone is of one host's links, and no part of a network.
  return (
    family !== 0 && !address.includes('%') && more.length === 0 && /^\d{1,3}$/.test(prefix) && Number(prefix) <= (family === 4 ? 32 : 128)
  )
}
