import { join } from 'node:path'
import type { Outcome } from '../../bench/promise.ts'
import { REPOSITORY } from '../harness/daemon-process.ts'
import type { Result } from './results.ts'
import type { Facts } from './run-facts.ts'

/** The last run of a story, as it is kept below build/kvm-lab/runs until the next one. */
export interface Run extends Result {
  readonly at: string
  readonly where: string
  readonly facts: Facts
}

/** The last bench of a driver there. */
export interface BenchRun {
  readonly at: string
  readonly where: string
  readonly facts: Facts
  readonly outcomes: readonly Omit<Outcome, 'samples'>[]
}

export const BENCHED = join(REPOSITORY, 'build/kvm-lab/bench.json')
export const RUNS = join(REPOSITORY, 'build/kvm-lab/runs')
