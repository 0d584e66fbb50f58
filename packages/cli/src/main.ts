/** The entry of `dormouse`. bin/dormouse starts it with Node's compile cache on. */
import { allOut } from './output/write-out.ts'
import { runProgram } from './program.ts'

const code = await runProgram(process.argv.slice(2))
await Promise.all([allOut(process.stdout), allOut(process.stderr)])
process.exit(code)
