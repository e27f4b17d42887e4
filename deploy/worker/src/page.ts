// The page as HTML. Pure. Every text from outside goes through `escape`.

import type { User } from "./user.js";

/** What the page has to say besides the user's settings. */
export interface View {
  /** null is a guest. */
  readonly user: User | null;
  /** A sentence that explains why the settings are missing, if they are. */
  readonly notice: string | null;
}

/** Renders the page. `nonce` lets its style sheet, and no other, pass the content security policy. */
export function renderPage({ user, notice }: View, nonce: string): string {
  const preview = user?.previewFeatures ?? false;
  const features = ["Dashboards", ...(preview ? ["Live queries"] : []), ...(user?.flags ?? [])];
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Your start page</title>
<style nonce="${nonce}">${STYLE}</style>
</head>
<body>
<header id="banner" class="${preview ? "preview" : "plain"}">
<p id="plan">${user === null ? "guest" : escape(user.plan)}</p>
<h1>${greeting(user)}</h1>
<p>${preview ? "Preview features are on: you see what others will see soon." : "You see what everybody sees."}</p>
</header>
<main>
${notice === null ? "" : `<p id="notice" role="status">${escape(notice)}</p>\n`}<h2>Yours to use</h2>
<ul id="features">
${features.map((feature) => `<li>${escape(feature)}</li>`).join("\n")}
</ul>
</main>
</body>
</html>
`;
}

function greeting(user: User | null): string {
  if (user === null) return "Welcome";
  return user.name === null ? "Welcome back" : `Welcome back, ${escape(user.name)}`;
}

function escape(text: string): string {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}

const STYLE = `
:root { color-scheme: light; font: 16px/1.5 system-ui, sans-serif; color: #1d2433; background: #f4f5f8; }
body { max-width: 44rem; margin: 0 auto; padding: 2rem 1rem; }
#banner { border-radius: .75rem; padding: 1.5rem 2rem; color: #fff; background: #3d4a63; }
#banner.preview { background: #4b32c3; border-left: .5rem solid #f59e0b; }
#banner h1 { margin: .5rem 0; line-height: 1.2; overflow-wrap: anywhere; }
#banner p { margin: 0; }
#plan { display: inline-block; padding: 0 .75rem; border-radius: 1rem; background: #fff3; font-weight: 600; }
#notice { padding: .75rem 1rem; border-left: .25rem solid #c2410c; background: #fff; }
h2 { margin-top: 2rem; font-size: 1.1rem; }
#features { display: flex; flex-wrap: wrap; gap: .5rem; padding: 0; list-style: none; }
#features li { padding: .5rem 1rem; border-radius: .5rem; background: #fff; box-shadow: 0 1px 2px #0002; }
`;
