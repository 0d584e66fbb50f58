/** The entry of `dormouse`. bin/dormouse starts it with Node's compile cache on. */
import { runProgram } from './program.ts'

process.exit(await runProgram(process.argv.slice(2)))
