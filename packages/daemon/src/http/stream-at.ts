/** What the route table has at a path that is written out. */
import { endpoint, type Method } from '@dormouse/api/endpoints.ts'
import { ROUTE_IDS, type Route, routes } from '@dormouse/api/routes.ts'

const PATTERNS = ROUTE_IDS.map((id) => {
  const { method, path } = endpoint(id)
  const route: Route = routes[id]
  return { route, method, pattern: new RegExp(`^${path.replace(/\{\w+\}/g, '[^/?#]+')}$`) }
})

/** Each once. */
export const methodsAt = (path: string): readonly Method[] => [
  ...new Set(PATTERNS.filter(({ pattern }) => pattern.test(path)).map(({ method }) => method)),
]

/** The stream that a GET of `path` opens. */
export const streamAt = (path: string): Route | undefined =>
  PATTERNS.find(
    ({ route, method, pattern }) => method === 'GET' && (route.stream === 'sse' || route.stream === 'websocket') && pattern.test(path),
  )?.route
