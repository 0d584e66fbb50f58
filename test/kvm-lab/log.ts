/**
 * Writes the log of docs/kvm-lab.md from the runs that are kept below build/kvm-lab/runs, the last one of each story. What is on the page
 * of stories that have no run there stays on it.
 *
 *   node test/kvm-lab/log.ts [DIR…]     DIR: runs of other checkouts
 */
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { REPOSITORY } from '../harness/daemon-process.ts'
import { logPage } from './log-page.ts'
import { BENCHED, RUNS, type Run } from './runs.ts'
import { NOT_HERE, STORIES } from './stories.ts'

const PAGE = join(REPOSITORY, 'docs/kvm-lab.md')
const MARK = '<!-- from here on written by test/kvm-lab/log.ts -->'

const json = (path: string) => JSON.parse(readFileSync(path, 'utf8'))
const runsIn = (dir: string): Run[] => (existsSync(dir) ? readdirSync(dir).map((name) => json(join(dir, name))) : [])
const [head = '', present = ''] = readFileSync(PAGE, 'utf8').split(MARK)
const log = logPage({
  runs: [RUNS, ...process.argv.slice(2)].flatMap(runsIn),
  bench: existsSync(BENCHED) ? json(BENCHED) : undefined,
  present: present.trim(),
  stories: STORIES,
  notHere: NOT_HERE,
})
writeFileSync(PAGE, `${head}${MARK}\n\n${log}`)
