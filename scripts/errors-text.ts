import { BROKEN_REQUESTS, ERRORS, type Retry } from '../packages/api/src/error-table.ts'
import { ERROR_CODES, type ErrorCode } from '../packages/api/src/errors.ts'

const AGAIN: Readonly<Record<Retry, string>> = { never: 'no', later: 'later', 'as-is': '' }

/** docs/errors.md: the table of errors as a page. */
export function errorsText(): string {
  const row = (code: ErrorCode): string => {
    const { status, when, hint = '', retry } = ERRORS[code]
    return `| \`${code}\` | ${status} | ${when} | ${hint} | ${AGAIN[retry]} |`
  }
  return `# Errors

Written by \`node scripts/api-docs.ts\` from \`packages/api/src/error-table.ts\`.

An answer that is not a success has a JSON body: \`code\` is one of these and does not change, \`message\` says what went wrong in a sentence, \`hint\` often what to do, \`details\` each single fault or fact, \`inner_error\` the reason below. Match on \`code\`. The header \`x-request-id\` is also in the daemon's log and in its audit log.

**Again?** *no*: the same request will be answered the same way, and \`x-should-retry: false\` says so to clients that repeat by themselves. *later*: the header \`retry-after\` says in how many seconds.

| Code | Status | When | What to do | Again? |
| --- | --- | --- | --- | --- |
${ERROR_CODES.map(row).join('\n')}

A request that is not even one for a route is \`invalid_request\` too, with a status of its own:

| Status | When |
| --- | --- |
${BROKEN_REQUESTS.map(({ status, when }) => `| ${status} | ${when} |`).join('\n')}

Which routes answer which codes is in [the reference of the API](api.md) and in the OpenAPI document. Over the WebSockets of exec and cp, what fails after the upgrade is told in a frame ([streams](streams.md)).
`
}
