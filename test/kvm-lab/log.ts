/**
 * Writes the log of docs/kvm-lab.md from the runs and figures that are kept below build/kvm-lab/runs, the last one of each story and promise. What
 * is on the page of those that have none there stays on it.
 *
 *   node test/kvm-lab/log.ts [DIR…]     DIR: runs of other checkouts
 */
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { REPOSITORY } from '../harness/daemon-process.ts'
import { logPage } from './log-page.ts'
import { type Figure, RUNS, type Run } from './runs.ts'
import { NOT_HERE, STORIES } from './stories.ts'

const PAGE = join(REPOSITORY, 'docs/kvm-lab.md')
const MARK = '<!-- from here on written by test/kvm-lab/log.ts -->'

const json = (path: string) => JSON.parse(readFileSync(path, 'utf8'))
const keptIn = (dir: string): (Run | Figure)[] => (existsSync(dir) ? readdirSync(dir).map((name) => json(join(dir, name))) : [])
const kept = [RUNS, ...process.argv.slice(2)].flatMap(keptIn)
const [head = '', present = ''] = readFileSync(PAGE, 'utf8').split(MARK)
const log = logPage({
  runs: kept.filter((one) => 'story' in one),
  figures: kept.filter((one) => 'outcome' in one),
  present: present.trim(),
  stories: STORIES,
  notHere: NOT_HERE,
})
writeFileSync(PAGE, `${head}${MARK}\n\n${log}`)
