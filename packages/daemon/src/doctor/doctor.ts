/**
 * What this host has, what is missing and how to mend it. Works while the daemon is down, changes nothing but a cache: each check is
 * a small file-less function that answers with a finding and never throws.
 */
import type { Config } from '../config/config.ts'
import {
  checkAssets,
  checkCgroups,
  checkDataDir,
  checkHost,
  checkHypervisors,
  checkPool,
  checkReflink,
  checkRights,
  checkRunDir,
  checkTools,
} from './checks.ts'
import { checkConntrack } from './conntrack-check.ts'
import { checkDevices } from './device-checks.ts'
import { checkNetwork } from './network-checks.ts'

export interface Finding {
  /** What was looked at. */
  readonly what: string
  /** `bad`: instances cannot run. `poor`: they can, with less. */
  readonly state: 'good' | 'poor' | 'bad'
  readonly says: string
  /** What to do about it: a command, or a sentence. */
  readonly mend?: string
}

export interface DoctorOptions {
  readonly json: boolean
  print(text: string): void
}

/** Prints the report; the exit code is 0 when instances can run. */
export async function doctor(config: Config, { json, print }: DoctorOptions): Promise<number> {
  const findings = await examine(config)
  print(json ? `${JSON.stringify(findings, null, 2)}\n` : report(findings))
  return findings.some(({ state }) => state === 'bad') ? 1 : 0
}

async function examine(config: Config): Promise<Finding[]> {
  const checks = [
    checkHost,
    checkRights,
    checkTools,
    checkAssets,
    checkHypervisors,
    checkCgroups,
    checkPool,
    checkNetwork,
    checkConntrack,
    checkDevices,
    checkDataDir,
    checkReflink,
    checkRunDir,
  ]
  const findings: Finding[] = []
  // One after the other: the probe of KVM boots a guest, and should have the host to itself.
  for (const check of checks) findings.push(...(await check(config)))
  return findings
}

const MARKS = { good: 'ok  ', poor: 'note', bad: 'FAIL' } as const

/** The findings as a table for people, with what to do below each that is not good. Pure. */
export function report(findings: readonly Finding[]): string {
  const width = Math.max(...findings.map(({ what }) => what.length))
  const lines = findings.flatMap(({ what, state, says, mend }) => [
    `${MARKS[state]}  ${what.padEnd(width)}  ${says}`,
    ...(mend === undefined ? [] : [`${' '.repeat(width + 8)}→ ${mend}`]),
  ])
  const bad = findings.filter(({ state }) => state === 'bad').length
  return `${lines.join('\n')}\n\n${bad === 0 ? 'Instances can run on this host.' : `Instances cannot run yet: ${bad} ${bad === 1 ? 'thing is' : 'things are'} missing.`}\n`
}
