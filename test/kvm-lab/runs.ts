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

/** The last figure of a promise there. */
export interface Figure {
  readonly at: string
  readonly where: string
  readonly facts: Facts
  readonly outcome: Omit<Outcome, 'samples'>
}

/** Runs by the names of their stories, figures by those of their promises with `figure-` before them. */
export const RUNS = join(REPOSITORY, 'build/kvm-lab/runs')
